// How .NET programs read a reply: for each name, a serializer with certain settings that reads the bytes of a reply.
using System;
using System.Collections.Generic;
using System.IO;
using System.Runtime.Serialization;
using System.Text;
using System.Xml;
using System.Xml.Serialization;
using Newtonsoft.Json;
using Newtonsoft.Json.Linq;
using Records;
using TaskActivityLogs;

public static class Readers {
  public static readonly Dictionary<string, Func<byte[], object>> All = new Dictionary<string, Func<byte[], object>> {
    { "example json", body => Body.ReadRecord("application/json", body) },
    { "example xml", body => Body.ReadRecord("application/xml", body) },
    { "newtonsoft", Newtonsoft<task_activity_log>() },
    { "newtonsoft capitals", Newtonsoft<Capitals>() },
    { "newtonsoft data contract", Newtonsoft<Contracted>() },
    { "newtonsoft offsets", Newtonsoft<Offsets>() },
    { "newtonsoft never null", Newtonsoft<NeverNull>() },
    { "newtonsoft never null, nulls ignored",
      Newtonsoft<NeverNull>(s => s.NullValueHandling = NullValueHandling.Ignore) },
    { "newtonsoft utc", Newtonsoft<task_activity_log>(s => s.DateTimeZoneHandling = DateTimeZoneHandling.Utc) },
    { "newtonsoft local", Newtonsoft<task_activity_log>(s => s.DateTimeZoneHandling = DateTimeZoneHandling.Local) },
    { "newtonsoft missing members are errors",
      Newtonsoft<task_activity_log>(s => s.MissingMemberHandling = MissingMemberHandling.Error) },
    { "newtonsoft jobject", body => JObject.Parse(Encoding.UTF8.GetString(body)).ToObject<task_activity_log>() },
    { "newtonsoft stream", body => new JsonSerializer().Deserialize<task_activity_log>(
      new JsonTextReader(new StreamReader(new MemoryStream(body)))) },
    { "data contract", body => DataContract<Contracted>(new MemoryStream(body)) },
    { "data contract never null", body => DataContract<NeverNull>(new MemoryStream(body)) },
    { "data contract offsets", body => DataContract<Offsets>(new MemoryStream(body)) },
    { "data contract ordered", body => DataContract<Ordered>(new MemoryStream(body)) },
    { "data contract xml reader", body => new DataContractSerializer(typeof(Contracted))
      .ReadObject(XmlReader.Create(new MemoryStream(body))) },
    { "data contract string reader", body => new DataContractSerializer(typeof(Contracted))
      .ReadObject(XmlReader.Create(new StringReader(Encoding.UTF8.GetString(body)))) },
    { "xml serializer", body => Serializer<task_activity_log>().Deserialize(new MemoryStream(body)) },
    { "xml serializer nullable", body => Serializer<Elements>().Deserialize(new MemoryStream(body)) },
    { "xml serializer never null", body => Serializer<NeverNull>().Deserialize(new MemoryStream(body)) },
    { "xml serializer string reader",
      body => Serializer<task_activity_log>().Deserialize(new StringReader(Encoding.UTF8.GetString(body))) },
    { "xml serializer xml reader",
      body => Serializer<task_activity_log>().Deserialize(XmlReader.Create(new MemoryStream(body))) },
  };

  static Func<byte[], object> Newtonsoft<T>(Action<JsonSerializerSettings> set = null) {
    var settings = new JsonSerializerSettings();
    if (set != null) set(settings);
    return body => JsonConvert.DeserializeObject<T>(Encoding.UTF8.GetString(body), settings);
  }

  static object DataContract<T>(Stream body) {
    return new DataContractSerializer(typeof(T)).ReadObject(body);
  }

  static XmlSerializer Serializer<T>() {
    return new XmlSerializer(typeof(T));
  }
}
