// A peer: a worker written as the documentation of amqplib and pg suggests, with one upsert and one confirmed reply for
// each message.
import amqp from "amqplib";
import { XMLParser } from "fast-xml-parser";
import pg from "pg";

const FIELDS = [
  "id", "task_id", "task_activity_id", "user_id", "contact_id", "subject", "description", "due_date", "is_closed",
  "date_closed", "reference_back_office",
];
const UPSERT = {
  name: "upsert",
  text:
    `INSERT INTO task_activity_log (${FIELDS.join(", ")}) VALUES (${FIELDS.map((_, i) => `$${i + 1}`).join(", ")})` +
    ` ON CONFLICT (id) DO UPDATE SET ${FIELDS.slice(1).map((name) => `${name} = EXCLUDED.${name}`).join(", ")}` +
    ` RETURNING ${FIELDS.join(", ")}, modified_dateutc`,
};

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 10 });
const connection = await amqp.connect(process.env.AMQP_URL);
const channel = await connection.createConfirmChannel();
const parser = new XMLParser({ parseTagValue: false, ignoreAttributes: true });

function parse(message) {
  const text = message.content.toString();
  return message.properties.contentType === "application/xml" ? parser.parse(text).task_activity_log : JSON.parse(text);
}

function reply(body, correlationId) {
  const options = { contentType: "application/json", correlationId, persistent: true, mandatory: true };
  return new Promise((resolve, reject) => {
    channel.publish("task_activity_log.replies", "stored.updated", body, options, (error) =>
      error ? reject(error) : resolve(),
    );
  });
}

await channel.prefetch(100);
await channel.consume("task_activity_log.upsert", async (message) => {
  const record = parse(message);
  const { rows } = await pool.query({ ...UPSERT, values: FIELDS.map((name) => record[name] ?? null) });
  await reply(Buffer.from(JSON.stringify(rows[0])), message.properties.correlationId);
  channel.ack(message);
});

process.on("SIGTERM", () => process.exit(0));
