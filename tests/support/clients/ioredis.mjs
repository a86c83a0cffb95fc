// ioredis, as applications use it. node ioredis.mjs URL MODULE_FOLDER
import { createRequire } from "node:module";

const [, , url, folder] = process.argv;
const Redis = createRequire(folder + "/")("ioredis");
const told = (what, value) => console.log(`${what}: ${JSON.stringify(value)}`);
const attempt = async (what, promise) => told(what, await promise.catch((error) => `error ${error.message}`));

const client = new Redis(url);
const other = new Redis(url);

await attempt("set", client.set("s", "one", "PX", 100000));
await attempt("get", client.get("s"));
await attempt("hash", client.hset("h", { a: 1, b: 2.5 }).then(() => client.hgetall("h")));
await attempt("list", client.rpush("l", ...Array(20).keys()).then(() => client.lrange("l", 5, 8)));
await attempt("sorted", client.zadd("z", 1.5, "a", 2, "b").then(() => client.zrange("z", 0, -1, "WITHSCORES")));
await attempt("large", client.set("big", Buffer.alloc(1500000, "\0\r\n")).then(() => client.getBuffer("big")).then((value) => value.length));
await attempt("missing", client.get("nothing"));
await attempt("wrong type", client.lpush("s", "x"));
await attempt("wrong use", client.call("SET", "s"));
await attempt("unknown", client.call("NOSUCH"));

const pipeline = client.pipeline();
for (let number = 0; number < 500; number++) pipeline.set(`p:${number}`, number);
told("pipeline", (await pipeline.exec()).filter(([error, value]) => !error && value === "OK").length);
told("multi", await client.multi().incr("n").lpush("s", "x").get("n").exec().then((replies) => replies.map(([error, value]) => error?.message ?? value)));
await Promise.all(Array.from({ length: 400 }, () => client.incr("counter")));
await attempt("counter", client.get("counter"));

await client.watch("n");
await other.set("n", "theirs");
told("watched", await client.multi().set("n", "mine").exec());
client.defineCommand("add", { numberOfKeys: 1, lua: "return redis.call('INCRBY', KEYS[1], ARGV[1])" });
told("script", [await client.add("scripted", 1), await client.add("scripted", 2)]);

const found = new Set();
for await (const keys of client.scanStream({ match: "p:*", count: 50 })) keys.forEach((key) => found.add(key));
told("scan", found.size);

await client.xgroup("CREATE", "x", "g", "0", "MKSTREAM");
for (let number = 1; number <= 5; number++) await client.xadd("x", `${number}-0`, "n", number);
told("read", await client.xreadgroup("GROUP", "g", "c", "COUNT", 3, "STREAMS", "x", ">"));
told("ack", await client.xack("x", "g", "1-0"));

const popping = client.blpop("jobs", 10);
await other.rpush("jobs", "job");
told("popped", await popping);
told("popped nothing", await client.blpop("jobs", 0.05));

const heard = [];
const listener = new Redis(url);
const last = new Promise((resolve) => listener.on("message", (channel, text) => { heard.push([channel, text]); if (text === "last") resolve(); }));
told("subscribed", await listener.subscribe("news", "weather"));
await client.publish("weather", "rain");
await client.publish("news", "last");
await last;
told("heard", heard);

const third = new Redis(url + "/3", { connectionName: "other" });
told("other", [await third.set("here", 1), await third.dbsize(), await third.client("GETNAME")]);
for (const each of [client, other, listener, third]) await each.quit();
