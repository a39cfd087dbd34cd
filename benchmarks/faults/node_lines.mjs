// Faults benchmark · its own process · the Node producer of examples/node-producer, driven by lines of JSON.
//
//   in   { id, request, options, cancelMs }        out   { id, say: accepted | cancel | lost | ended | error, … }

import { createInterface } from 'node:readline'

const { ENDED, Producer } = await import(process.argv[2])
const producer = await new Producer({ socket: process.argv[3] }).open()
const say = line => process.stdout.write(JSON.stringify(line) + '\n')

async function cancel (id) {
  say({ id, say: 'cancel', answer: await producer.cancel(id) })
}

async function one ({ id, request, options, cancelMs }) {
  let text = ''
  let cancelled = null
  await producer.submit(request, options)
  say({ id, say: 'accepted' })
  if (cancelMs !== null) cancelled = new Promise(resolve => setTimeout(() => resolve(cancel(id)), cancelMs))
  for await (const event of producer.follow(id)) {
    if (event.kind === 'restarted') text = ''
    if (event.kind === 'restarted' && event.reason === 'lost') say({ id, say: 'lost' })
    if (event.kind === 'token') text += event.text
    if (!ENDED.has(event.kind)) continue
    await cancelled
    const { content = '', error } = event.result
    say({ id, say: 'ended', state: event.kind, text, content, code: error?.code ?? '' })
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const job = JSON.parse(line)
  one(job).catch(error => say({ id: job.id, say: 'error', name: error.constructor.name, message: error.message }))
}
await producer.close()
