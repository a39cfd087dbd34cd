// node producer.mjs submit "prompt" [--position] [--priority high] …: what client.mjs can do, on a command line.

import { parseArgs } from 'node:util'
import { ENDED, IdConflict, JobGone, Producer, QueueFull, Unavailable } from './client.mjs'

const USAGE = `node producer.mjs submit "prompt" [--priority low|normal|high|critical] [--tenant NAME] [--id ID] [--tier TIER]
                     [--max-tokens N] [--deadline-ms MS] [--key IDEMPOTENCY_KEY] [--position] [--no-wait]
node producer.mjs watch ID [--position]
node producer.mjs position ID
node producer.mjs cancel ID

Where Redis is: SOCKET=/path/redis.sock or REDIS_URL=redis://…; REDIS_QUEUE_PREFIX if it is not {metamuse}.
Exit codes: 0 done, 1 failed, 2 usage, 3 cancelled, 4 expired, 5 quarantined, 65 refused, 66 gone, 69 no Redis, 75 full,
130 after Ctrl-C, which cancels the job.`

const OPTIONS = Object.fromEntries(
  ['priority', 'tenant', 'id', 'tier', 'max-tokens', 'deadline-ms', 'key'].map(name => [name, { type: 'string' }])
)
for (const name of ['position', 'no-wait', 'help']) OPTIONS[name] = { type: 'boolean' }

const EXIT = { done: 0, failed: 1, cancelled: 3, expired: 4, dead: 5 }

let interrupted = false

async function main () {
  const { values, positionals: [command, ...words] } = parseArgs({ options: OPTIONS, allowPositionals: true })
  const run = { submit, watch, position, cancel }[command]
  if (values.help || !run || !words.length) {
    console.error(USAGE)
    return values.help ? 0 : 2
  }
  const { SOCKET: socket, REDIS_URL: url, REDIS_QUEUE_PREFIX: prefix } = process.env
  const producer = await new Producer({ socket, url, prefix }).open()
  try {
    return await run(producer, words, values)
  } finally {
    await producer.close()
  }
}

async function submit (producer, words, values) {
  const params = values['max-tokens'] ? { max_tokens: Number(values['max-tokens']) } : undefined
  const request = { user_query: words.join(' '), id: values.id, tier: values.tier, params }
  const { priority, tenant, key } = values
  const defined = Object.entries(request).filter(([, value]) => value !== undefined)
  const deadlineMs = Number(values['deadline-ms'] ?? 0)
  const { id } = await producer.submit(Object.fromEntries(defined), { priority, tenant, key, deadlineMs })
  if (values['no-wait']) {
    console.log(id)
    return 0
  }
  console.error(`job ${id}`)
  for (const name of ['SIGINT', 'SIGTERM']) { // once: the second one ends this program
    process.once(name, () => {
      interrupted = true
      producer.cancel(id).catch(error => { console.error(`could not cancel: ${error.message}`) })
    })
  }
  const code = await follow(producer, id, values)
  return interrupted ? 130 : code
}

async function watch (producer, [id], values) {
  return await follow(producer, id, values)
}

async function follow (producer, id, values) {
  let begun = false
  const asking = values.position && setTimeout(() => tellPosition(producer, id).catch(() => {}), 1000)
  for await (const event of producer.follow(id)) {
    if (event.kind !== 'queued') clearTimeout(asking)
    if (event.kind === 'queued' && values.position) console.error(place(event, event.start_p50_ms, event.start_p90_ms))
    if (event.kind === 'token') {
      process.stdout.write(event.text)
      begun = true
    }
    if (event.kind === 'restarted') {
      if (begun) process.stdout.write('\n')
      begun = false
      console.error(`── restarted (attempt ${event.attempt}: ${event.reason}); the answer begins again ──`)
    }
    if (ENDED.has(event.kind)) {
      if (begun) process.stdout.write('\n')
      return ended(event)
    }
  }
}

function ended ({ kind, result: { error } }) {
  if (kind === 'done') return 0
  const later = error?.retry_after_s ? ` (try again in ${error.retry_after_s} s)` : ''
  console.error(`${kind}: ${error?.code ?? kind}: ${error?.message ?? ''}${later}`)
  return later ? 75 : EXIT[kind]
}

async function position (producer, [id]) {
  return await tellPosition(producer, id) ? 0 : 66
}

async function tellPosition (producer, id) {
  const found = await producer.position(id)
  if (!found) console.error('gone')
  else if (!found.queue) console.error(found.state)
  else console.error(place(found, found.startP50Ms, found.startP90Ms))
  return found
}

function place ({ queue, ahead }, p50Ms, p90Ms) {
  const seconds = ms => `${(ms / 1000).toFixed(1)} s`
  const when = p50Ms == null ? '' : ` · starts in about ${seconds(p50Ms)}, within ${seconds(p90Ms)} in 9 cases of 10`
  return `waiting ${queue === 'ingress' ? 'to be routed' : `for ${queue}`}, ${ahead} ahead${when}`
}

async function cancel (producer, ids) {
  let code = 0
  for (const id of ids) {
    const state = await producer.cancel(id)
    console.log(`${id}  ${state}`)
    if (state === 'gone') code = 66
  }
  return code
}

function explain (error) {
  if (error instanceof QueueFull) return [75, `${error.message} (try again in ${error.retryAfterMs / 1000} s)`]
  if (error instanceof Unavailable) return [69, error.message]
  if (error instanceof JobGone) return [66, error.message]
  if (error instanceof IdConflict) return [65, error.message]
  if (/^INVALID /.test(error.message)) return [65, error.message.slice('INVALID '.length).replaceAll('|', '; ')]
  if (/^ERR_PARSE_ARGS/.test(error.code)) return [2, `${error.message}\n${USAGE}`]
  return [70, error.stack]
}

process.stdout.on('error', () => process.exit(1)) // whoever read our output has left
try {
  process.exitCode = await main()
} catch (error) {
  const [code, text] = explain(error)
  console.error(text)
  process.exitCode = code
}
