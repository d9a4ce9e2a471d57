// A peer: what an expert writes in Go for speed. Deliveries are read into a buffered channel, so that a batch is
// whatever is waiting, at most 500. One statement stores a batch, its replies are published without waiting for each, and
// one acknowledgement settles it. While the broker confirms the replies of one batch, the next one is in the database.
//
// It ends at the first error. It has no dead letters, no problems as answers, no isolation of bad rows, no reconnection and
// no metrics. With UPSERT in its environment it stores batches with the worker's own statement, which also writes the inbox.
// With WITHOUT_DATABASE=1 it stores nothing, and answers with the record it was sent.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"log"
	"os"
	"sort"
	"time"

	"github.com/jackc/pgtype"
	"github.com/jackc/pgx/v4"
	amqp "github.com/rabbitmq/amqp091-go"
)

const batchMax = 500
const prefetch = 4 * batchMax

type record struct {
	ID                  string     `json:"id" xml:"id"`
	TaskID              *string    `json:"task_id" xml:"task_id"`
	TaskActivityID      *string    `json:"task_activity_id" xml:"task_activity_id"`
	UserID              *string    `json:"user_id" xml:"user_id"`
	ContactID           *string    `json:"contact_id" xml:"contact_id"`
	Subject             *string    `json:"subject" xml:"subject"`
	Description         *string    `json:"description" xml:"description"`
	DueDate             *time.Time `json:"due_date" xml:"due_date"`
	IsClosed            *bool      `json:"is_closed" xml:"is_closed"`
	DateClosed          *time.Time `json:"date_closed" xml:"date_closed"`
	ReferenceBackOffice *string    `json:"reference_back_office" xml:"reference_back_office"`
	ModifiedDateUTC     *time.Time `json:"modified_dateutc" xml:"modified_dateutc"`
}

// A request is a delivery and the record in it.
type request struct {
	delivery amqp.Delivery
	record   record
	id       [16]byte
	// Whether there is a row to answer with. A complete worker would read that of a duplicate.
	stored bool
}

// A sent batch waits for the confirm with the number `last`, then its deliveries are acknowledged up to `tag`.
type sent struct{ last, tag uint64 }

const upsert = `INSERT INTO task_activity_log (id, task_id, task_activity_id, user_id, contact_id, subject, description,
 due_date, is_closed, date_closed, reference_back_office)
 SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::text[], $7::text[],
 $8::timestamptz[], $9::bool[], $10::timestamptz[], $11::text[])
 ON CONFLICT (id) DO UPDATE SET task_id = EXCLUDED.task_id, task_activity_id = EXCLUDED.task_activity_id,
 user_id = EXCLUDED.user_id, contact_id = EXCLUDED.contact_id, subject = EXCLUDED.subject,
 description = EXCLUDED.description, due_date = EXCLUDED.due_date, is_closed = EXCLUDED.is_closed,
 date_closed = EXCLUDED.date_closed, reference_back_office = EXCLUDED.reference_back_office
 RETURNING id, task_id, task_activity_id, user_id, contact_id, subject, description, due_date, is_closed, date_closed,
 reference_back_office, modified_dateutc, ''`

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func parseUUID(text string) (id [16]byte) {
	var digits [32]byte
	if len(text) != 36 {
		log.Fatal("not a uuid")
	}
	n := 0
	for i := 0; i < len(text); i++ {
		if text[i] != '-' && n < 32 {
			digits[n] = text[i]
			n++
		}
	}
	_, err := hex.Decode(id[:], digits[:])
	check(err)
	return id
}

func formatUUID(id [16]byte) string {
	var text [36]byte
	hex.Encode(text[:8], id[:4])
	hex.Encode(text[9:13], id[4:6])
	hex.Encode(text[14:18], id[6:8])
	hex.Encode(text[19:23], id[8:10])
	hex.Encode(text[24:], id[10:])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return string(text[:])
}

func decode(delivery amqp.Delivery) *request {
	r := &request{delivery: delivery}
	if delivery.ContentType == "application/xml" {
		check(xml.Unmarshal(delivery.Body, &r.record))
	} else {
		check(json.Unmarshal(delivery.Body, &r.record))
	}
	r.id = parseUUID(r.record.ID)
	return r
}

// The key by which a repeated message is recognized: a digest of its message_id and its body.
func (r *request) key() [16]byte {
	sum := sha256.New()
	var length [8]byte
	for _, part := range [][]byte{[]byte(r.delivery.MessageId), r.delivery.Body} {
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		sum.Write(length[:])
		sum.Write(part)
	}
	var key [16]byte
	copy(key[:], sum.Sum(nil))
	return key
}

// The values of one column for each type, as arrays for unnest.

func dimensions(n int) []pgtype.ArrayDimension {
	return []pgtype.ArrayDimension{{Length: int32(n), LowerBound: 1}}
}

func ids(batch []*request, value func(*request) [16]byte) *pgtype.UUIDArray {
	elements := make([]pgtype.UUID, len(batch))
	for i, r := range batch {
		elements[i] = pgtype.UUID{Bytes: value(r), Status: pgtype.Present}
	}
	return &pgtype.UUIDArray{Elements: elements, Dimensions: dimensions(len(batch)), Status: pgtype.Present}
}

func uuids(batch []*request, value func(*record) *string) *pgtype.UUIDArray {
	elements := make([]pgtype.UUID, len(batch))
	for i, r := range batch {
		if text := value(&r.record); text != nil {
			elements[i] = pgtype.UUID{Bytes: parseUUID(*text), Status: pgtype.Present}
		} else {
			elements[i] = pgtype.UUID{Status: pgtype.Null}
		}
	}
	return &pgtype.UUIDArray{Elements: elements, Dimensions: dimensions(len(batch)), Status: pgtype.Present}
}

func texts(batch []*request, value func(*record) *string) *pgtype.TextArray {
	elements := make([]pgtype.Text, len(batch))
	for i, r := range batch {
		if text := value(&r.record); text != nil {
			elements[i] = pgtype.Text{String: *text, Status: pgtype.Present}
		} else {
			elements[i] = pgtype.Text{Status: pgtype.Null}
		}
	}
	return &pgtype.TextArray{Elements: elements, Dimensions: dimensions(len(batch)), Status: pgtype.Present}
}

func instants(batch []*request, value func(*record) *time.Time) *pgtype.TimestamptzArray {
	elements := make([]pgtype.Timestamptz, len(batch))
	for i, r := range batch {
		if instant := value(&r.record); instant != nil {
			elements[i] = pgtype.Timestamptz{Time: *instant, Status: pgtype.Present}
		} else {
			elements[i] = pgtype.Timestamptz{Status: pgtype.Null}
		}
	}
	return &pgtype.TimestamptzArray{Elements: elements, Dimensions: dimensions(len(batch)), Status: pgtype.Present}
}

// The worker's statement takes instants as text.
func instantTexts(batch []*request, value func(*record) *time.Time) *pgtype.TextArray {
	return texts(batch, func(r *record) *string {
		instant := value(r)
		if instant == nil {
			return nil
		}
		text := instant.Format("2006-01-02T15:04:05.999999Z07:00")
		return &text
	})
}

func booleans(batch []*request, value func(*record) *bool) *pgtype.BoolArray {
	elements := make([]pgtype.Bool, len(batch))
	for i, r := range batch {
		if given := value(&r.record); given != nil {
			elements[i] = pgtype.Bool{Bool: *given, Status: pgtype.Present}
		} else {
			elements[i] = pgtype.Bool{Status: pgtype.Null}
		}
	}
	return &pgtype.BoolArray{Elements: elements, Dimensions: dimensions(len(batch)), Status: pgtype.Present}
}

func nulls(n int) *pgtype.Int8Array {
	elements := make([]pgtype.Int8, n)
	for i := range elements {
		elements[i].Status = pgtype.Null
	}
	return &pgtype.Int8Array{Elements: elements, Dimensions: dimensions(n), Status: pgtype.Present}
}

func arguments(batch []*request, withInbox bool) []interface{} {
	due := func(r *record) *time.Time { return r.DueDate }
	closed := func(r *record) *time.Time { return r.DateClosed }
	values := []interface{}{
		ids(batch, func(r *request) [16]byte { return r.id }),
		uuids(batch, func(r *record) *string { return r.TaskID }),
		uuids(batch, func(r *record) *string { return r.TaskActivityID }),
		uuids(batch, func(r *record) *string { return r.UserID }),
		uuids(batch, func(r *record) *string { return r.ContactID }),
		texts(batch, func(r *record) *string { return r.Subject }),
		texts(batch, func(r *record) *string { return r.Description }),
		instants(batch, due),
		booleans(batch, func(r *record) *bool { return r.IsClosed }),
		instants(batch, closed),
		texts(batch, func(r *record) *string { return r.ReferenceBackOffice }),
	}
	if withInbox {
		values[7], values[9] = instantTexts(batch, due), instantTexts(batch, closed)
		values = append(values, ids(batch, (*request).key), nulls(len(batch)), "1000ms")
	}
	return values
}

func text(id pgtype.UUID) *string {
	if id.Status != pgtype.Present {
		return nil
	}
	formatted := formatUUID(id.Bytes)
	return &formatted
}

// Stores a batch in which each id occurs once, and reads the rows back.
func store(connection *pgx.Conn, statement string, batch []*request, withInbox bool) {
	sorted := append([]*request(nil), batch...)
	sort.Slice(sorted, func(i, j int) bool { return string(sorted[i].id[:]) < string(sorted[j].id[:]) })
	byID := make(map[[16]byte]*request, len(batch))
	for _, r := range batch {
		byID[r.id] = r
	}
	rows, err := connection.Query(context.Background(), statement, arguments(sorted, withInbox)...)
	check(err)
	for rows.Next() {
		var id, task, activity, user, contact pgtype.UUID
		var outcome string
		var found record
		check(rows.Scan(&id, &task, &activity, &user, &contact, &found.Subject, &found.Description, &found.DueDate,
			&found.IsClosed, &found.DateClosed, &found.ReferenceBackOffice, &found.ModifiedDateUTC, &outcome))
		found.ID, found.TaskID, found.TaskActivityID = formatUUID(id.Bytes), text(task), text(activity)
		found.UserID, found.ContactID = text(user), text(contact)
		r := byID[id.Bytes]
		r.record, r.stored = found, true
	}
	check(rows.Err())
}

// Publishes the replies of a batch and returns the number of the last one.
func answer(channel *amqp.Channel, batch []*request) uint64 {
	last := channel.GetNextPublishSeqNo() - 1
	for _, r := range batch {
		if !r.stored {
			continue
		}
		body, err := json.Marshal(&r.record)
		check(err)
		last = channel.GetNextPublishSeqNo()
		check(channel.PublishWithContext(context.Background(), "task_activity_log.replies", "stored.updated", true, false,
			amqp.Publishing{ContentType: "application/json", CorrelationId: r.delivery.CorrelationId,
				DeliveryMode: amqp.Persistent, Body: body}))
	}
	return last
}

// Acknowledges each batch when all its replies are confirmed. The library reports confirms in the order of publishing.
func settle(channel *amqp.Channel, batches <-chan sent, confirms <-chan amqp.Confirmation) {
	var confirmed uint64
	for batch := range batches {
		for confirmed < batch.last {
			confirm, open := <-confirms
			if !open || !confirm.Ack {
				log.Fatal("the broker did not confirm a reply")
			}
			confirmed = confirm.DeliveryTag
		}
		check(channel.Ack(batch.tag, true))
	}
}

// The next batch: what is waiting, up to a repeated id, which one statement cannot store twice. Such a request is returned
// as the first one of the batch after it.
func take(requests <-chan *request, first *request) (batch []*request, next *request) {
	if first == nil {
		first = <-requests
	}
	batch = []*request{first}
	seen := map[[16]byte]bool{first.id: true}
	for len(batch) < batchMax {
		select {
		case r := <-requests:
			if seen[r.id] {
				return batch, r
			}
			seen[r.id] = true
			batch = append(batch, r)
		default:
			return batch, nil
		}
	}
	return batch, nil
}

func main() {
	connection, err := amqp.Dial(os.Getenv("AMQP_URL"))
	check(err)
	intake, err := connection.Channel()
	check(err)
	publishing, err := amqp.Dial(os.Getenv("AMQP_URL"))
	check(err)
	replies, err := publishing.Channel()
	check(err)
	check(replies.Confirm(false))
	confirms := replies.NotifyPublish(make(chan amqp.Confirmation, 2*prefetch))
	returns := replies.NotifyReturn(make(chan amqp.Return, 1))
	go func() {
		if _, open := <-returns; open {
			log.Fatal("no queue takes a reply")
		}
	}()
	check(intake.Qos(prefetch, 0, false))
	deliveries, err := intake.Consume("task_activity_log.upsert", "", false, false, false, false, nil)
	check(err)
	var database *pgx.Conn
	if os.Getenv("WITHOUT_DATABASE") == "" {
		database, err = pgx.Connect(context.Background(), os.Getenv("DATABASE_URL"))
		check(err)
	}
	statement, withInbox := os.LookupEnv("UPSERT")
	if !withInbox {
		statement = upsert
	}
	requests := make(chan *request, prefetch)
	go func() {
		for delivery := range deliveries {
			requests <- decode(delivery)
		}
		log.Fatal("the broker ended the consumer")
	}()
	batches := make(chan sent, 1)
	go settle(intake, batches, confirms)
	var batch []*request
	var next *request
	for {
		batch, next = take(requests, next)
		if database != nil {
			store(database, statement, batch, withInbox)
		} else {
			for _, r := range batch {
				r.stored = true
			}
		}
		batches <- sent{answer(replies, batch), batch[len(batch)-1].delivery.DeliveryTag}
	}
}
