using System;
using System.Threading;
using System.Threading.Tasks;
using RabbitMQ.Client;
using RabbitMQ.Client.Events;

namespace TaskActivityLogs
{
    /// <summary>
    /// Where a subscriber stores what it receives. The data must be durable when the task completes, because the message is
    /// acknowledged then. Both methods may receive the same content more than once.
    /// </summary>
    public interface ICopies
    {
        /// <summary>
        /// Store the record if there is none with its id, or one whose ModifiedDateUtc is not later; in one statement:
        /// INSERT … ON CONFLICT (id) DO UPDATE … WHERE excluded.modified_dateutc >= copies.modified_dateutc.
        ///
        /// ModifiedDateUtc grows with each write of a record, and replies can be repeated or late. It has microseconds in
        /// JSON and milliseconds in XML: if your publishers send both, compare milliseconds.
        /// </summary>
        Task KeepIfNotOlderAsync(TaskActivityLog record);

        /// <summary>Store the problem once per messageId; repeats of a reply have the same one.</summary>
        Task KeepAsync(string messageId, string correlationId, Problem problem);
    }

    /// <summary>Consumes the replies queue. RabbitMQ.Client 7 reconnects and consumes again by itself.</summary>
    public static class Subscriber
    {
        public static async Task RunAsync(Uri broker, ICopies copies, CancellationToken stop)
        {
            using (var connection = await new ConnectionFactory { Uri = broker }.CreateConnectionAsync(stop))
            using (var channel = await connection.CreateChannelAsync(cancellationToken: stop))
            {
                await channel.BasicQosAsync(prefetchSize: 0, prefetchCount: 100, global: false, cancellationToken: stop);
                var consumer = new AsyncEventingBasicConsumer(channel);
                consumer.ReceivedAsync += async (sender, reply) =>
                {
                    try
                    {
                        await HandleAsync(reply, copies);
                        await channel.BasicAckAsync(reply.DeliveryTag, multiple: false);
                    }
                    catch (Exception error)
                    {
                        Console.Error.WriteLine("not handled, will be tried again: " + error.Message);
                        await Task.Delay(1000);
                        await channel.BasicNackAsync(reply.DeliveryTag, multiple: false, requeue: true);
                    }
                };
                await channel.BasicConsumeAsync(
                    "task_activity_log.replies", autoAck: false, consumer: consumer, cancellationToken: stop);
                await Task.Delay(Timeout.Infinite, stop);
            }
        }

        private static Task HandleAsync(BasicDeliverEventArgs reply, ICopies copies)
        {
            var properties = reply.BasicProperties;
            var body = reply.Body.ToArray();
            if (properties.Type == "task_activity_log.stored")
                return copies.KeepIfNotOlderAsync(Body.ReadRecord(properties.ContentType, body));
            if (properties.Type == "task_activity_log.rejected")
                return copies.KeepAsync(
                    properties.MessageId, properties.CorrelationId, Body.ReadProblem(properties.ContentType, body));
            Console.Error.WriteLine("not a reply of the worker: " + properties.Type);
            return Task.CompletedTask;
        }
    }
}
