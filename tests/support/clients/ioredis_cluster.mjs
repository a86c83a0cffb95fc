// ioredis' Cluster: increments counters one after the other until its input ends.
// node ioredis_cluster.mjs PORT FOLDER; prints a line a reply: `KEY VALUE`, or `! ERROR`.
import { createRequire } from 'node:module';

const [port, folder] = process.argv.slice(2);
const { Cluster } = createRequire(`${folder}/`)('ioredis');
const cluster = new Cluster([{ host: '127.0.0.1', port: Number(port) }]);
let stopped = false;
process.stdin.on('end', () => { stopped = true; });
process.stdin.resume();

for (let number = 0; !stopped; number += 1) {
  const key = `ioredis:${number % 50}`;
  try {
    console.log(`${key} ${await cluster.incr(key)}`);
  } catch (error) {
    console.log(`! ${error.name}: ${error.message}`);
  }
}
cluster.disconnect();
