// A peer: a worker written as the documentation of amqp091-go and pgx suggests, with one goroutine, one upsert and one
// confirmed reply for each message.
package main

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"log"
	"os"
	"time"

	"github.com/jackc/pgx/v4/pgxpool"
	amqp "github.com/rabbitmq/amqp091-go"
)

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

const upsert = `INSERT INTO task_activity_log (id, task_id, task_activity_id, user_id, contact_id, subject, description,
 due_date, is_closed, date_closed, reference_back_office) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
 ON CONFLICT (id) DO UPDATE SET task_id = EXCLUDED.task_id, task_activity_id = EXCLUDED.task_activity_id,
 user_id = EXCLUDED.user_id, contact_id = EXCLUDED.contact_id, subject = EXCLUDED.subject,
 description = EXCLUDED.description, due_date = EXCLUDED.due_date, is_closed = EXCLUDED.is_closed,
 date_closed = EXCLUDED.date_closed, reference_back_office = EXCLUDED.reference_back_office
 RETURNING id::text, task_id::text, task_activity_id::text, user_id::text, contact_id::text, subject, description,
 due_date, is_closed, date_closed, reference_back_office, modified_dateutc`

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func handle(pool *pgxpool.Pool, channel *amqp.Channel, message amqp.Delivery) {
	var r record
	if message.ContentType == "application/xml" {
		check(xml.Unmarshal(message.Body, &r))
	} else {
		check(json.Unmarshal(message.Body, &r))
	}
	row := pool.QueryRow(context.Background(), upsert, r.ID, r.TaskID, r.TaskActivityID, r.UserID, r.ContactID, r.Subject,
		r.Description, r.DueDate, r.IsClosed, r.DateClosed, r.ReferenceBackOffice)
	check(row.Scan(&r.ID, &r.TaskID, &r.TaskActivityID, &r.UserID, &r.ContactID, &r.Subject, &r.Description, &r.DueDate,
		&r.IsClosed, &r.DateClosed, &r.ReferenceBackOffice, &r.ModifiedDateUTC))
	body, err := json.Marshal(r)
	check(err)
	confirmed, err := channel.PublishWithDeferredConfirm("task_activity_log.replies", "stored.updated", true, false,
		amqp.Publishing{ContentType: "application/json", CorrelationId: message.CorrelationId, DeliveryMode: amqp.Persistent,
			Body: body})
	check(err)
	if !confirmed.Wait() {
		log.Fatal("the broker did not confirm a reply")
	}
	check(message.Ack(false))
}

func main() {
	config, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL"))
	check(err)
	config.MaxConns = 10
	pool, err := pgxpool.ConnectConfig(context.Background(), config)
	check(err)
	connection, err := amqp.Dial(os.Getenv("AMQP_URL"))
	check(err)
	channel, err := connection.Channel()
	check(err)
	check(channel.Confirm(false))
	check(channel.Qos(100, 0, false))
	deliveries, err := channel.Consume("task_activity_log.upsert", "", false, false, false, false, nil)
	check(err)
	for message := range deliveries {
		go handle(pool, channel, message)
	}
}
