// How .NET programs write a request: for each name, a serializer with certain settings that writes a record.
// `writers.py` says what each is expected to write.
using System;
using System.Collections.Generic;
using System.IO;
using System.Runtime.Serialization;
using System.Runtime.Serialization.Json;
using System.Text;
using System.Xml;
using System.Xml.Serialization;
using Newtonsoft.Json;
using Newtonsoft.Json.Converters;
using Newtonsoft.Json.Linq;
using Newtonsoft.Json.Serialization;
using Records;
using TaskActivityLogs;

public struct Written {
  public string ContentType;
  public byte[] Bytes;
}

public static class Writers {
  static readonly Encoding Utf8 = new UTF8Encoding(false);
  static readonly Encoding Utf16 = new UnicodeEncoding(false, false);
  static readonly Encoding Utf16Big = new UnicodeEncoding(true, false);

  public static readonly Dictionary<string, Func<JObject, Written>> All = new Dictionary<string, Func<JObject, Written>> {
    // docs/examples
    { "example json", v => Json(Body.ToJson(Values.Fill<TaskActivityLog>(v))) },
    { "example xml", v => Xml(stream => {
      var bytes = Body.ToXml(Values.Fill<TaskActivityLog>(v));
      stream.Write(bytes, 0, bytes.Length);
    }) },
    // Newtonsoft.Json: names
    { "newtonsoft", Newtonsoft<task_activity_log>() },
    { "newtonsoft capitals", Newtonsoft<Capitals>() },
    { "newtonsoft camel case", Newtonsoft<Capitals>(s => s.ContractResolver = new CamelCasePropertyNamesContractResolver()) },
    { "newtonsoft data contract", Newtonsoft<Contracted>() },
    { "newtonsoft never null", Newtonsoft<NeverNull>() },
    { "newtonsoft offsets", Newtonsoft<Offsets>() },
    // nulls
    { "newtonsoft nulls ignored", Newtonsoft<task_activity_log>(s => s.NullValueHandling = NullValueHandling.Ignore) },
    { "newtonsoft defaults ignored",
      Newtonsoft<task_activity_log>(s => s.DefaultValueHandling = DefaultValueHandling.Ignore) },
    { "newtonsoft should serialize", Newtonsoft<Asked>() },
    // dates
    { "newtonsoft microsoft dates",
      Newtonsoft<task_activity_log>(s => s.DateFormatHandling = DateFormatHandling.MicrosoftDateFormat) },
    { "newtonsoft microsoft dates offsets",
      Newtonsoft<Offsets>(s => s.DateFormatHandling = DateFormatHandling.MicrosoftDateFormat) },
    { "newtonsoft utc", Newtonsoft<task_activity_log>(s => s.DateTimeZoneHandling = DateTimeZoneHandling.Utc) },
    { "newtonsoft local", Newtonsoft<task_activity_log>(s => s.DateTimeZoneHandling = DateTimeZoneHandling.Local) },
    { "newtonsoft unspecified",
      Newtonsoft<task_activity_log>(s => s.DateTimeZoneHandling = DateTimeZoneHandling.Unspecified) },
    { "newtonsoft date format",
      Newtonsoft<task_activity_log>(s => s.DateFormatString = "yyyy-MM-dd'T'HH:mm:ss.fffK") },
    { "newtonsoft date format with a space",
      Newtonsoft<task_activity_log>(s => s.DateFormatString = "yyyy-MM-dd HH:mm:ss") },
    { "newtonsoft iso converter",
      Newtonsoft<task_activity_log>(s => s.Converters.Add(new IsoDateTimeConverter())) },
    { "newtonsoft javascript dates",
      Newtonsoft<task_activity_log>(s => s.Converters.Add(new JavaScriptDateTimeConverter())) },
    // text
    { "newtonsoft indented", Newtonsoft<task_activity_log>(s => s.Formatting = Newtonsoft.Json.Formatting.Indented) },
    { "newtonsoft ascii",
      Newtonsoft<task_activity_log>(s => s.StringEscapeHandling = StringEscapeHandling.EscapeNonAscii) },
    { "newtonsoft html", Newtonsoft<task_activity_log>(s => s.StringEscapeHandling = StringEscapeHandling.EscapeHtml) },
    { "newtonsoft types", Newtonsoft<task_activity_log>(s => s.TypeNameHandling = TypeNameHandling.All) },
    { "newtonsoft references",
      Newtonsoft<task_activity_log>(s => s.PreserveReferencesHandling = PreserveReferencesHandling.Objects) },
    { "newtonsoft jobject", v => Json(Utf8.GetBytes(JObject.FromObject(Values.Fill<task_activity_log>(v)).ToString())) },
    // bytes
    { "newtonsoft stream writer", v => Streamed(v, Encoding.UTF8, "application/json; charset=utf-8") },
    { "newtonsoft utf-16 with mark", v => Streamed(v, Encoding.Unicode, "application/json") },
    { "newtonsoft utf-16", v => Streamed(v, Utf16, "text/json; charset=\"utf-16\"") },
    { "newtonsoft utf-16be", v => Streamed(v, Utf16Big, "application/json;charset=UTF-16BE") },
    // DataContractJsonSerializer
    { "data contract json", DataContractJson<Contracted>(null) },
    { "data contract json plain", DataContractJson<task_activity_log>(null) },
    { "data contract json offsets", DataContractJson<Offsets>(null) },
    { "data contract json date format", DataContractJson<Contracted>(new DataContractJsonSerializerSettings {
      DateTimeFormat = new DateTimeFormat("yyyy-MM-dd'T'HH:mm:ss.fffffffK"),
    }) },
    // DataContractSerializer: classes
    { "data contract", DataContract<Contracted>() },
    { "data contract plain", DataContract<task_activity_log>() },
    { "data contract ordered", DataContract<Ordered>() },
    { "data contract sparse", DataContract<Sparse>() },
    { "data contract offsets", DataContract<Offsets>() },
    { "data contract never null", DataContract<NeverNull>() },
    { "data contract preserved references", v => Xml(stream => new DataContractSerializer(typeof(Contracted),
      new DataContractSerializerSettings { PreserveObjectReferences = true }).WriteObject(
        stream, Values.Fill<Contracted>(v))) },
    // writers and bytes
    { "data contract string writer", v => Text(writer => DataContract(v, writer), Utf8) },
    { "data contract utf-16 string", v => Text(writer => DataContract(v, writer), Utf16, "text/xml; charset=utf-16") },
    { "data contract utf-16 string without charset", v => Text(writer => DataContract(v, writer), Utf16) },
    { "data contract xml writer utf-8 with mark", v => Written(v, Encoding.UTF8, DataContract) },
    { "data contract xml writer utf-16 with mark", v => Written(v, Encoding.Unicode, DataContract) },
    { "data contract xml writer utf-16be with mark", v => Written(v, Encoding.BigEndianUnicode, DataContract) },
    { "data contract xml writer unchecked", v => Xml(stream => {
      using (var writer = XmlWriter.Create(stream, new XmlWriterSettings { CheckCharacters = false, Encoding = Utf8 }))
        DataContract(v, writer);
    }) },
    { "data contract dictionary writer", v => Xml(stream => {
      using (var writer = XmlDictionaryWriter.CreateTextWriter(stream, Utf8)) DataContract(v, writer);
    }) },
    // XmlSerializer: classes
    { "xml serializer", Serializer<task_activity_log>() },
    { "xml serializer nullable", Serializer<Elements>() },
    { "xml serializer specified", Serializer<Specified>() },
    { "xml serializer should serialize", Serializer<Asked>() },
    { "xml serializer never null", Serializer<NeverNull>() },
    { "xml serializer offsets", Serializer<Offsets>("task_activity_log") },
    { "xml serializer namespace", v => Xml(stream => new XmlSerializer(typeof(task_activity_log),
      "http://schemas.example.com/crm/2026").Serialize(stream, Values.Fill<task_activity_log>(v))) },
    { "xml serializer without namespaces", v => Xml(stream => {
      var none = new XmlSerializerNamespaces();
      none.Add("", "");
      new XmlSerializer(typeof(task_activity_log)).Serialize(stream, Values.Fill<task_activity_log>(v), none);
    }) },
    // writers and bytes
    { "xml serializer string writer", v => Text(new StringWriter(), v, Utf8) },
    { "xml serializer utf-16 string", v => Text(new StringWriter(), v, Utf16, "application/xml; charset=utf-16") },
    { "xml serializer stream writer", v => Xml(stream => {
      using (var writer = new StreamWriter(stream, Encoding.UTF8)) Serialize(v, writer);
    }) },
    { "xml serializer text writer utf-16", v => Xml(stream => {
      using (var writer = new XmlTextWriter(stream, Encoding.Unicode)) SerializeTo(v, writer);
    }) },
    { "xml serializer xml writer", v => Written(v, Utf8, SerializeTo) },
    { "xml serializer xml writer utf-16 with mark", v => Written(v, Encoding.Unicode, SerializeTo) },
    { "xml serializer xml writer without declaration", v => Xml(stream => {
      using (var writer = XmlWriter.Create(stream, new XmlWriterSettings { OmitXmlDeclaration = true, Encoding = Utf8 }))
        SerializeTo(v, writer);
    }) },
    { "xml serializer xml writer entitized", v => Xml(stream => {
      using (var writer = XmlWriter.Create(
          stream, new XmlWriterSettings { NewLineHandling = NewLineHandling.Entitize, Encoding = Utf8, Indent = true }))
        SerializeTo(v, writer);
    }) },
  };

  static Func<JObject, Written> Newtonsoft<T>(Action<JsonSerializerSettings> set = null) where T : new() {
    var settings = new JsonSerializerSettings();
    if (set != null) set(settings);
    return values => Json(Utf8.GetBytes(JsonConvert.SerializeObject(Values.Fill<T>(values), settings)));
  }

  static Written Json(byte[] bytes) {
    return new Written { ContentType = "application/json", Bytes = bytes };
  }

  static Written Streamed(JObject values, Encoding encoding, string contentType) {
    var stream = new MemoryStream();
    using (var writer = new StreamWriter(stream, encoding))
      new JsonSerializer().Serialize(writer, Values.Fill<task_activity_log>(values));
    return new Written { ContentType = contentType, Bytes = stream.ToArray() };
  }

  static Func<JObject, Written> DataContractJson<T>(DataContractJsonSerializerSettings settings) where T : new() {
    return values => {
      var stream = new MemoryStream();
      new DataContractJsonSerializer(typeof(T), settings ?? new DataContractJsonSerializerSettings())
        .WriteObject(stream, Values.Fill<T>(values));
      return new Written { ContentType = "application/json", Bytes = stream.ToArray() };
    };
  }

  static Func<JObject, Written> DataContract<T>() where T : new() {
    return values => Xml(stream => new DataContractSerializer(typeof(T)).WriteObject(stream, Values.Fill<T>(values)));
  }

  static void DataContract(JObject values, XmlWriter writer) {
    new DataContractSerializer(typeof(Contracted)).WriteObject(writer, Values.Fill<Contracted>(values));
  }

  static Func<JObject, Written> Serializer<T>(string root = null) where T : new() {
    var serializer = root == null
      ? new XmlSerializer(typeof(T)) : new XmlSerializer(typeof(T), new XmlRootAttribute(root));
    return values => Xml(stream => serializer.Serialize(stream, Values.Fill<T>(values)));
  }

  static void Serialize(JObject values, TextWriter writer) {
    new XmlSerializer(typeof(task_activity_log)).Serialize(writer, Values.Fill<task_activity_log>(values));
  }

  static void SerializeTo(JObject values, XmlWriter writer) {
    new XmlSerializer(typeof(task_activity_log)).Serialize(writer, Values.Fill<task_activity_log>(values));
  }

  static Written Xml(Action<Stream> write) {
    var stream = new MemoryStream();
    write(stream);
    return new Written { ContentType = "application/xml", Bytes = stream.ToArray() };
  }

  static Written Written(JObject values, Encoding encoding, Action<JObject, XmlWriter> write) {
    return Xml(stream => {
      using (var writer = XmlWriter.Create(stream, new XmlWriterSettings { Encoding = encoding, Indent = true }))
        write(values, writer);
    });
  }

  // What most hand-written publishers do: write to a string, whose XML declaration says utf-16, and encode that to bytes.
  static Written Text(Action<XmlWriter> write, Encoding encoding, string contentType = "application/xml") {
    var text = new StringWriter();
    using (var writer = XmlWriter.Create(text)) write(writer);
    return new Written { ContentType = contentType, Bytes = encoding.GetBytes(text.ToString()) };
  }

  static Written Text(StringWriter text, JObject values, Encoding encoding, string contentType = "application/xml") {
    Serialize(values, text);
    return new Written { ContentType = contentType, Bytes = encoding.GetBytes(text.ToString()) };
  }
}
