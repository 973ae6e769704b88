// BullMQ over Redis. `node bull.cjs worker THREADS`, or a word of bench/peers/produce.py: fill, singles, trickle.
// It keeps no completed jobs: what it records of a run is gone with it.
const fs = require("node:fs");
const path = require("node:path");
const { Queue, Worker } = require("bullmq");

const QUEUE = "bench-bull";
const CAPACITY = 2_000_000;
const url = new URL(process.env.BENCH_REDIS);
const connection = { host: url.hostname, port: Number(url.port), maxRetriesPerRequest: null };
const KEEP_NOTHING = { removeOnComplete: true };
const now = () => Date.now() / 1000;
const monotonic = () => performance.now() / 1000;
const sleep = (seconds) => new Promise((done) => setTimeout(done, 1000 * Math.max(0, seconds)));
const data = (text) => ({ tenant: "tenant-0042", text, asked: String(now()) });

// Node cannot map a file: the marks gather in memory and are written twenty times a second.
function openMarks() {
  const file = fs.openSync(path.join(process.env.BENCH_MARKS, `marks.${process.pid}`), "wx");
  const pairs = new Float64Array(2 * CAPACITY);
  let marked = 0;
  let written = 0;
  setInterval(() => {
    if (marked > written) fs.writeSync(file, pairs, 16 * written, 16 * (marked - written), 16 * written);
    written = marked;
  }, 50);
  return (asked) => {
    pairs[2 * marked] = Number(asked);
    pairs[2 * marked + 1] = now();
    marked += 1;
  };
}

function worker(threads) {
  const mark = openMarks();
  new Worker(
    QUEUE,
    async (job) => {
      mark(job.data.asked);
      if (job.name === "nap") await sleep(Number(job.data.text));
    },
    { connection, concurrency: threads },
  );
}

async function timed(action) {
  const began = monotonic();
  await action();
  return monotonic() - began;
}

async function fill(queue, task, text, runs) {
  const seconds = await timed(async () => {
    for (let sent = 0; sent < runs; sent += 1000) {
      const jobs = Array.from({ length: Math.min(1000, runs - sent) }, () => ({ name: task, data: data(text), opts: KEEP_NOTHING }));
      await queue.addBulk(jobs);
    }
  });
  return { seconds };
}

async function singles(queue, runs, callers) {
  const calls = [];
  const caller = async () => {
    for (let sent = 0; sent < runs / callers; sent += 1) calls.push(await timed(() => queue.add("noop", data("-"), KEEP_NOTHING)));
  };
  const seconds = await timed(() => Promise.all(Array.from({ length: callers }, caller)));
  return { seconds, calls };
}

async function trickle(queue, runs, rate) {
  const calls = [];
  const began = monotonic();
  for (let sent = 0; sent < runs; sent += 1) {
    await sleep(began + sent / rate - monotonic());
    calls.push(await timed(() => queue.add("noop", data("-"), KEEP_NOTHING)));
  }
  return { calls };
}

async function produce(word, words) {
  const queue = new Queue(QUEUE, { connection });
  await queue.waitUntilReady();
  const answer =
    word === "fill"
      ? await fill(queue, words[0], words[1], Number(words[2]))
      : await { singles, trickle }[word](queue, Number(words[0]), Number(words[1]));
  console.log(JSON.stringify(answer));
  await queue.close();
}

const [word, ...words] = process.argv.slice(2);
if (word === "worker") worker(Number(words[0]));
else produce(word, words);
