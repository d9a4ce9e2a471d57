// Follow the replies: node subscriber.js (AMQP_URL names the broker). Ends with Ctrl-C.
import amqp from "amqplib";

const newest = new Map(); // modified_dateutc by id; a real subscriber keeps it with its data
const connection = await amqp.connect(process.env.AMQP_URL);
const channel = await connection.createChannel();
await channel.prefetch(100);

await channel.consume("task_activity_log.replies", (reply) => {
  if (reply === null) throw new Error("the queue was deleted");
  // Problems, and replies to requests in XML, are passed over here.
  if (reply.properties.contentType === "application/json") {
    const record = JSON.parse(reply.content.toString());
    // Microseconds: Date has milliseconds only, so the texts are compared, the fraction filled up.
    const [seconds, fraction = ""] = record.modified_dateutc.replace("+00:00", "").split(".");
    const stamp = `${seconds}.${fraction.padEnd(6, "0")}`;
    // It grows with every write of a row, so repeats and stragglers are those that are not newer.
    if (stamp > (newest.get(record.id) ?? "")) {
      newest.set(record.id, stamp);
      console.log(reply.properties.headers["x-outcome"], record.id, record.subject);
    }
  }
  channel.ack(reply); // after the work: what fails comes again
});
