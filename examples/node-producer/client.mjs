// A producer for metamusesd: submit, follow and cancel jobs, written from docs/redis-protocol.md with a stock client.
//
//   const producer = await new Producer({ socket: '…/run/redis.sock' }).open()
//   const { id } = await producer.submit({ user_query: 'What is a muse?' }, { priority: 'high' })
//   for await (const event of producer.follow(id)) if (event.kind === 'token') process.stdout.write(event.text)
//   await producer.close()
//
// Two connections: one for commands, one that blocks on the streams of all jobs that are being followed. Redis away:
// every call is made again, longer apart each time; streams are read on after their last entry. Whenever a stream is
// silent for a while, the job itself is asked for; one that Redis has lost is submitted again under its id.

import { createHash, randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { createClient, ErrorReply } from 'redis'

export const ENDED = new Set(['done', 'failed', 'cancelled', 'expired', 'dead'])

const PRIORITIES = { low: '0', normal: '1', high: '2', critical: '3' }
const TROUBLE = /^(OOM|MISCONF|READONLY|LOADING|BUSY|TRYAGAIN|CLUSTERDOWN|MASTERDOWN|NOREPLICAS)\b/
const RESUBMITS = 3 // times that one job is submitted again
const BLOCK_MS = 250 // so long a newcomer waits at most until its stream is read as well
const SILENT_MS = 2000 // after so long without a word a job is asked for
const SOCKET_TIMEOUT_MS = 10_000 // a connection that is silent for so long is half-open
const PING_MS = 3000

export class QueueFull extends Error {
  constructor (bound, retryAfterMs) {
    super(`the queue is full: the bound on ${bound} is reached`)
    Object.assign(this, { bound, retryAfterMs })
  }
}

export class IdConflict extends Error {}
export class JobGone extends Error {}
export class Unavailable extends Error {}

export class Producer {
  #scripts = {} // name → { text, sha }
  #jobs = new Map() // id → how to submit it again
  #watches = new Map() // id → Watch
  #reading = null
  #opened = false

  // `socket` is a path, `url` a redis:// address. `patienceMs`: how long a call waits for a Redis that is away.
  constructor ({ url, socket, prefix = '{metamuse}', lua = LUA, patienceMs = 30_000 } = {}) {
    this.prefix = prefix.includes('{') ? prefix : `{${prefix}}`
    this.patienceMs = patienceMs
    for (const name of ['submit', 'cancel', 'position']) {
      const parts = name === 'position' ? ['common', 'place', name] : ['common', name]
      const text = parts.map(part => readFileSync(new URL(`${part}.lua`, lua), 'utf8')).join('')
      this.#scripts[name] = { text, sha: createHash('sha1').update(text).digest('hex') }
    }
    const where = socket ? { path: socket } : {}
    this.redis = createClient({
      ...(url ? { url } : {}),
      socket: { ...where, socketTimeout: SOCKET_TIMEOUT_MS, reconnectStrategy: n => this.#opened && pauseMs(n) },
      pingInterval: PING_MS,
      disableOfflineQueue: true
    })
    this.reader = this.redis.duplicate()
    for (const client of [this.redis, this.reader]) client.on('error', () => {}) // each call has its own error
  }

  async open () {
    try {
      await Promise.all([this.redis.connect(), this.reader.connect()])
    } catch (error) {
      throw new Unavailable(`Redis cannot be reached: ${error.message}`, { cause: error })
    }
    this.#opened = true
    return this
  }

  async close () {
    this.#opened = false
    for (const watch of this.#watches.values()) watch.fail(new Unavailable('the producer was closed'))
    this.redis.destroy()
    this.reader.destroy()
    await this.#reading
  }

  // Puts a job in; the same id with the same request is one job, however often. { id, state, duplicate }
  async submit (request, { priority = 'normal', tenant = 'default', deadlineMs = 0, key = '', stream = true } = {}) {
    const id = request.id ?? randomUUID()
    const body = JSON.stringify({ ...request, id, priority, tenant })
    const level = PRIORITIES[String(priority).toLowerCase()] ?? String(priority)
    const job = { id, body, level, tenant, key, stream, tries: 0, until: deadlineMs ? Date.now() + deadlineMs : 0 }
    const receipt = await this.#put(job)
    if (receipt.id === id) this.#jobs.set(id, job)
    return receipt
  }

  async #put (job) {
    const digest = createHash('sha1').update(job.body).digest('hex')
    const left = job.until ? Math.max(1, job.until - Date.now()) : 0
    const [kind, id, detail, retryAfterMs] = await this.#run('submit', [
      job.id, job.body, digest, job.level, job.tenant, String(left), job.key, '', job.stream ? '1' : '0'
    ])
    if (kind === 'full') throw new QueueFull(detail, Number(retryAfterMs))
    if (kind === 'conflict') throw new IdConflict(`this ${detail} already names another request: job ${id}`)
    return { id, state: detail, duplicate: kind === 'duplicate' }
  }

  // The job's state now: `cancelled`, how it had ended before, or `gone`.
  async cancel (id) {
    this.#jobs.delete(id)
    return await this.#run('cancel', [id])
  }

  // { state, queue, ahead, startP50Ms, startP90Ms }, the times null while nobody knows; null: no such job.
  async position (id) {
    const reply = await this.#run('position', [id])
    if (!reply) return null
    const [state, queue, ahead, p50, p90] = reply
    return { state, queue, ahead: Number(ahead), startP50Ms: known(p50), startP90Ms: known(p90) }
  }

  async result (id) {
    const text = await this.#ask(() => this.redis.get(this.#key('result', id)))
    return text === null ? null : JSON.parse(text)
  }

  async state (id) {
    return await this.#ask(() => this.redis.hGet(this.#key('job', id), 'state'))
  }

  // Every event of a job in order, from its first; the last has the `result`. After `restarted` the text begins again.
  // The text since then is the content of a job that is done. Throws JobGone.
  async * follow (id) {
    if (this.#watches.has(id)) throw new Error(`job ${id} is being followed already`)
    const watch = new Watch(id)
    this.#watches.set(id, watch)
    try {
      this.#reading ??= this.#readAll().finally(() => { this.#reading = null })
      while (true) {
        const event = await watch.next()
        yield event
        if (ENDED.has(event.kind)) return
      }
    } finally {
      this.#watches.delete(id)
    }
  }

  // One blocking read at a time, over the streams of all jobs that are followed; then a look at those that are silent.
  async #readAll () {
    for (let failures = 0; this.#watches.size && this.#opened;) {
      const watches = [...this.#watches.values()].filter(watch => !watch.over)
      if (!watches.length) return
      try {
        await this.#read(watches)
        const silent = watches.filter(watch => !watch.over && watch.isSilent(SILENT_MS))
        await Promise.all(silent.map(watch => this.#guard(watch, () => this.#check(watch))))
        failures = 0
      } catch (error) {
        for (const watch of watches) isTrouble(error) ? watch.doubt() : watch.fail(error)
        await sleep(pauseMs(failures++))
      }
    }
  }

  async #read (watches) {
    const streams = watches.map(watch => ({ key: this.#key('events', watch.id), id: watch.cursor }))
    for (const { name, messages } of await this.reader.xRead(streams, { BLOCK: BLOCK_MS, COUNT: 1000 }) ?? []) {
      const watch = this.#watches.get(name.slice(this.#key('events', '').length))
      if (watch) await this.#guard(watch, () => this.#hear(watch, messages))
    }
  }

  async #guard (watch, work) {
    try {
      await work()
    } catch (error) {
      if (isTrouble(error)) throw error
      watch.fail(error)
    }
  }

  async #hear (watch, messages) {
    watch.heardMs = Date.now()
    for (const { id, message } of messages) {
      watch.cursor = id
      if (!ENDED.has(message.kind)) watch.hear(message)
      else this.#end(watch, await this.result(watch.id))
    }
  }

  #end (watch, result) {
    if (!result) throw new JobGone(`the result of job ${watch.id} has expired`)
    this.#jobs.delete(watch.id)
    watch.end(result)
  }

  // A silent job: it has ended, it lives, or Redis has lost it.
  async #check (watch) {
    watch.heardMs = Date.now()
    let result = await this.result(watch.id)
    if (!result && await this.state(watch.id)) return
    result ??= await this.result(watch.id)
    if (result) return this.#end(watch, result)
    const job = this.#jobs.get(watch.id)
    if (!job || job.tries >= RESUBMITS) throw new JobGone(`job ${watch.id} is not in the queue`)
    const { duplicate } = await this.#put(job)
    job.tries++
    if (!duplicate) watch.restart('lost')
  }

  async #run (name, words) {
    const { text, sha } = this.#scripts[name]
    const how = { keys: [this.prefix], arguments: words }
    return await this.#ask(async () => {
      try {
        return await this.redis.evalSha(sha, how)
      } catch (error) {
        if (!/^NOSCRIPT/.test(error.message)) throw error
        return await this.redis.eval(text, how) // it is kept from now on
      }
    })
  }

  // Any call may be made again after a lost reply.
  async #ask (work) {
    const end = Date.now() + this.patienceMs
    for (let failures = 0; ; failures++) {
      try {
        return await work()
      } catch (error) {
        if (!isTrouble(error) || !this.#opened) throw error
        if (Date.now() > end) throw new Unavailable(`Redis does not do it: ${error.message}`, { cause: error })
        await sleep(pauseMs(failures))
      }
    }
  }

  #key (kind, id) {
    return `${this.prefix}:${kind}:${id}`
  }
}

// What one reader has heard of one job.
class Watch {
  #events = []
  #wake = null
  #error = null
  #text = ''
  #chars = 0 // offsets count Unicode characters, not UTF-16 units
  #told = false

  constructor (id) {
    Object.assign(this, { id, cursor: '0', heardMs: 0, over: false })
  }

  isSilent (ms) {
    return Date.now() - this.heardMs > ms
  }

  // The connection was lost: ask for the job as soon as its stream was read.
  doubt () {
    this.heardMs = 0
  }

  async next () {
    while (!this.#events.length) {
      if (this.#error) throw this.#error
      await new Promise(resolve => { this.#wake = resolve })
    }
    return this.#events.shift()
  }

  hear ({ kind, attempt, offset, text, data }) {
    if (kind === 'restarted') this.restart(data, attempt)
    else if (kind === 'token') this.#token(Number(offset), text)
    else if (kind === 'queued') this.#push({ kind, ...JSON.parse(data) })
    else if (kind === 'started') this.#push({ kind, attempt: Number(attempt) })
  }

  restart (reason, attempt) {
    if (reason === 'lost') this.cursor = '0' // a new life, a new stream
    this.#text = ''
    this.#chars = 0
    if (this.#told) this.#push({ kind: 'restarted', reason, attempt: Number(attempt ?? 1) })
  }

  // Text that was seen already is cut off; text after a gap waits for the result, which has it all.
  #token (offset, text) {
    if (offset > this.#chars) return
    const fresh = [...text].slice(this.#chars - offset)
    if (!fresh.length) return
    const at = this.#chars
    this.#chars += fresh.length
    this.#text += fresh.join('')
    this.#push({ kind: 'token', offset: at, text: fresh.join('') })
  }

  end (result) {
    if (this.over) return
    if (result.state === 'done') {
      if (!result.content.startsWith(this.#text)) this.restart('answered', result.attempt)
      this.#token(this.#chars, result.content.slice(this.#text.length))
    }
    this.#push({ kind: result.state, result })
    this.over = true
  }

  fail (error) {
    this.over = true
    this.#error = error
    this.#ring()
  }

  #push (event) {
    if (this.over) return
    this.#told ||= event.kind !== 'queued'
    this.#events.push(event)
    this.#ring()
  }

  #ring () {
    this.#wake?.()
    this.#wake = null
  }
}

const LUA = process.env.LUA
  ? new URL(`file://${process.env.LUA.replace(/\/*$/, '/')}`)
  : new URL('../../metamusesd/queues/lua/', import.meta.url)

// Redis is in trouble, not the call: everything but an answer of the server, and some of its answers.
function isTrouble (error) {
  const ours = [QueueFull, IdConflict, JobGone, Unavailable, TypeError, SyntaxError]
  return error instanceof ErrorReply ? TROUBLE.test(error.message) : !ours.some(kind => error instanceof kind)
}

function pauseMs (failures) {
  return Math.min(50 * 2 ** Math.min(failures, 10), 2000) * (0.5 + Math.random() / 2)
}

function known (ms) {
  return Number(ms) < 0 ? null : Number(ms)
}

function sleep (ms) {
  return new Promise(resolve => setTimeout(resolve, ms))
}
