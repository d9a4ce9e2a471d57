// Send one upsert and wait for its answer: node publisher.js (AMQP_URL names the broker).
import { randomUUID } from "node:crypto";
import amqp from "amqplib";

async function publish() {
  const connection = await amqp.connect(process.env.AMQP_URL);
  const channel = await connection.createConfirmChannel();
  const { queue: replies } = await channel.assertQueue("", { exclusive: true });

  const record = {
    id: randomUUID(),
    subject: "Call back about the offer",
    due_date: new Date("2026-01-11T20:58:34.720Z").toISOString(),
    is_closed: false,
  };
  // Create one messageId per change and keep it: a change sent again with the same messageId is not applied twice.
  const messageId = randomUUID();

  const answered = new Promise((resolve, reject) => {
    // A mandatory message that reaches no queue is returned instead of being lost silently.
    channel.on("return", () => reject(new Error("no queue receives upserts: has the worker declared its queues?")));
    channel.on("error", reject); // such as an exchange that does not exist
    connection.on("error", reject);
    channel.consume(
      replies,
      (answer) => answer?.properties.correlationId === messageId && resolve(answer),
      { noAck: true },
    );
    setTimeout(() => reject(new Error("no answer in 30 s")), 30_000).unref();
  });
  // Where workers share partitions: exchange "task_activity_log.by-record", and as routing key
  // createHash("sha256").update(record.id.toLowerCase()).digest("hex").slice(0, 2).
  channel.publish("task_activity_log", "upsert", Buffer.from(JSON.stringify(record)), {
    contentType: "application/json",
    persistent: true,
    mandatory: true,
    messageId,
    appId: "example", // the name of your program, by which operators select its dead letters
    timestamp: Math.floor(Date.now() / 1000), // seconds, not milliseconds
    replyTo: replies,
  });
  const [, answer] = await Promise.all([channel.waitForConfirms(), answered]);

  console.log(answer.properties.headers["x-outcome"], answer.content.toString());
  await connection.close();
}

publish().catch((error) => {
  console.error(`not answered: ${error.message || error.code}`);
  process.exit(1);
});
