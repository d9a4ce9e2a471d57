// The signatures of RabbitMQ.Client 7.2 that docs/examples/csharp uses, so that the compiler can check the examples. The
// package itself is not in Debian (its libmono-rabbitmq4.0-cil is from 2009 and has neither confirms nor async).
using System;
using System.Collections.Generic;
using System.Threading;
using System.Threading.Tasks;
using RabbitMQ.Client.Events;

namespace RabbitMQ.Client {
  public class ConnectionFactory {
    public Uri Uri { get; set; }
    public bool AutomaticRecoveryEnabled { get; set; }
    public Task<IConnection> CreateConnectionAsync(CancellationToken cancellationToken = default(CancellationToken)) {
      throw new NotImplementedException();
    }
  }

  public interface IConnection : IDisposable {
    Task<IChannel> CreateChannelAsync(
      CreateChannelOptions options = null, CancellationToken cancellationToken = default(CancellationToken));
  }

  public class CreateChannelOptions {
    public CreateChannelOptions(
      bool publisherConfirmationsEnabled, bool publisherConfirmationTrackingEnabled,
      IDisposable outstandingPublisherConfirmationsRateLimiter = null, ushort? consumerDispatchConcurrency = 1) {}
  }

  public interface IChannel : IDisposable {
    event AsyncEventHandler<ShutdownEventArgs> ChannelShutdownAsync;
    Task BasicQosAsync(
      uint prefetchSize, ushort prefetchCount, bool global,
      CancellationToken cancellationToken = default(CancellationToken));
    ValueTask BasicAckAsync(
      ulong deliveryTag, bool multiple, CancellationToken cancellationToken = default(CancellationToken));
    ValueTask BasicNackAsync(
      ulong deliveryTag, bool multiple, bool requeue, CancellationToken cancellationToken = default(CancellationToken));
    ValueTask BasicPublishAsync<TProperties>(
      string exchange, string routingKey, bool mandatory, TProperties basicProperties, ReadOnlyMemory<byte> body,
      CancellationToken cancellationToken = default(CancellationToken))
      where TProperties : IReadOnlyBasicProperties, IAmqpHeader;
  }

  public static class IChannelExtensions {
    public static Task<string> BasicConsumeAsync(
      this IChannel channel, string queue, bool autoAck, IAsyncBasicConsumer consumer,
      CancellationToken cancellationToken = default(CancellationToken)) {
      throw new NotImplementedException();
    }

    public static Task<QueueDeclareOk> QueueDeclareAsync(
      this IChannel channel, string queue = "", bool durable = false, bool exclusive = true, bool autoDelete = true,
      IDictionary<string, object> arguments = null, bool noWait = false,
      CancellationToken cancellationToken = default(CancellationToken)) {
      throw new NotImplementedException();
    }
  }

  public class QueueDeclareOk {
    public readonly string QueueName;
  }

  public interface IAmqpHeader {}

  public interface IAsyncBasicConsumer {}

  public interface IReadOnlyBasicProperties {
    string ContentType { get; }
    string CorrelationId { get; }
    string MessageId { get; }
    string Type { get; }
  }

  public sealed class BasicProperties : IReadOnlyBasicProperties, IAmqpHeader {
    public string ContentType { get; set; }
    public string CorrelationId { get; set; }
    public string MessageId { get; set; }
    public bool Persistent { get; set; }
    public string ReplyTo { get; set; }
    public AmqpTimestamp Timestamp { get; set; }
    public string Type { get; set; }
  }

  public struct AmqpTimestamp {
    public AmqpTimestamp(long unixTime) {}
  }
}

namespace RabbitMQ.Client.Events {
  public delegate Task AsyncEventHandler<in TEvent>(object sender, TEvent @event) where TEvent : AsyncEventArgs;

  public class AsyncEventArgs {}

  public class ShutdownEventArgs : AsyncEventArgs {}

  public class BasicDeliverEventArgs : AsyncEventArgs {
    public readonly IReadOnlyBasicProperties BasicProperties;
    public readonly ReadOnlyMemory<byte> Body;
    public readonly ulong DeliveryTag;
  }

  public class AsyncEventingBasicConsumer : IAsyncBasicConsumer {
    public AsyncEventingBasicConsumer(IChannel channel) {}
#pragma warning disable 67 // nobody raises it here
    public event AsyncEventHandler<BasicDeliverEventArgs> ReceivedAsync;
  }
}

namespace RabbitMQ.Client.Exceptions {
  public class BrokerUnreachableException : Exception {}

  public class PossibleAuthenticationFailureException : Exception {}

  public class AuthenticationFailureException : PossibleAuthenticationFailureException {}

  public class PublishException : Exception {}

  public class OperationInterruptedException : Exception {
    public OperationInterruptedException(ShutdownEventArgs reason) {}
  }
}
