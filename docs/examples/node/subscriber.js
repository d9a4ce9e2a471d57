// Follow the replies: node subscriber.js (AMQP_URL names the broker). It connects again after an outage; stop it with Ctrl-C.
import { setTimeout } from "node:timers/promises";
import amqp from "amqplib";

const newest = new Map(); // modified_dateutc by id; a real subscriber stores it with its data

function handle({ properties: { contentType, correlationId, headers, type }, content }) {
  if (type === "task_activity_log.rejected") {
    console.log("rejected", headers["x-error-code"], correlationId);
  } else if (type !== "task_activity_log.stored") {
    console.log("not a reply of the worker:", type);
  } else if (contentType !== "application/json") { // a reply has the format of its request
    console.log("in XML, which this example does not read:", correlationId);
  } else {
    const record = JSON.parse(content.toString());
    // Date has milliseconds only, so the texts are compared, with the fraction padded to microseconds.
    const [seconds, fraction = ""] = record.modified_dateutc.replace("+00:00", "").split(".");
    const stamp = `${seconds}.${fraction.padEnd(6, "0")}`;
    // modified_dateutc grows with each write of a row: a repeated or late reply is not newer.
    if (stamp > (newest.get(record.id) ?? "")) {
      newest.set(record.id, stamp);
      console.log(headers["x-outcome"], record.id, record.subject);
    }
  }
}

async function follow() {
  const connection = await amqp.connect(process.env.AMQP_URL);
  try {
    const channel = await connection.createChannel();
    await channel.prefetch(100);
    await new Promise((_, fail) => {
      const received = (reply) => {
        if (reply === null) return fail(new Error("the queue was deleted"));
        try {
          handle(reply);
          channel.ack(reply); // after the work, so that a reply whose handling fails is delivered again
        } catch (error) {
          fail(error);
        }
      };
      connection.on("error", fail);
      connection.on("close", () => fail(new Error("the broker has closed the connection")));
      channel.on("error", fail);
      channel.consume("task_activity_log.replies", received).catch(fail);
    });
  } finally {
    await connection.close().catch(() => {}); // it may be lost
  }
}

for (;;) {
  await follow().catch((error) => console.error(`no replies: ${error.message || error.code}; trying again in 5 s`));
  await setTimeout(5000);
}
