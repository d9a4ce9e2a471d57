// Follow the replies: node subscriber.js (AMQP_URL names the broker). Stop it with Ctrl-C. It ends when the connection is
// lost: let whatever runs it, such as systemd or Kubernetes, start it again. Nothing is lost meanwhile.
import amqp from "amqplib";

const newest = new Map(); // modified_dateutc by id; a real subscriber stores it with its data
const connection = await amqp.connect(process.env.AMQP_URL);
const channel = await connection.createChannel();
await channel.prefetch(100);

await channel.consume("task_activity_log.replies", (reply) => {
  if (reply === null) throw new Error("the queue was deleted");
  const { contentType, correlationId, headers, type } = reply.properties;
  if (type === "task_activity_log.rejected") {
    console.log("rejected", headers["x-error-code"], correlationId);
  } else if (type !== "task_activity_log.stored") {
    console.log("not a reply of the worker:", type);
  } else if (contentType !== "application/json") { // a reply has the format of its request
    console.log("in XML, which this example does not read:", correlationId);
  } else {
    const record = JSON.parse(reply.content.toString());
    // Date has milliseconds only, so the texts are compared, with the fraction padded to microseconds.
    const [seconds, fraction = ""] = record.modified_dateutc.replace("+00:00", "").split(".");
    const stamp = `${seconds}.${fraction.padEnd(6, "0")}`;
    // modified_dateutc grows with each write of a row: a repeated or late reply is not newer.
    if (stamp > (newest.get(record.id) ?? "")) {
      newest.set(record.id, stamp);
      console.log(headers["x-outcome"], record.id, record.subject);
    }
  }
  channel.ack(reply); // after the work, so that a reply whose handling fails is delivered again
});
