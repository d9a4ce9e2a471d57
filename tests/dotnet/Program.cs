// Drives the serializers: for each line of JSON on standard input it writes one line of JSON to standard output.
//
//   {"list": true}               → {"write": [settings], "read": [settings]}
//   {"write": setting, "values"} → {"content_type", "body"}      body in base64
//   {"read": setting, "body"}    → {"values"}
//   {"problem": content type, "body"} → {"code", "status", "detail", "errors"}
//
// If a serializer throws, the line is {"error"}, with the exception's type and message.
using System;
using System.IO;
using System.Linq;
using System.Text;
using Newtonsoft.Json;
using Newtonsoft.Json.Linq;
using TaskActivityLogs;

public static class Program {
  static readonly JsonSerializerSettings Ascii =
    new JsonSerializerSettings { StringEscapeHandling = StringEscapeHandling.EscapeNonAscii };

  public static void Main() {
    var input = new StreamReader(Console.OpenStandardInput(), new UTF8Encoding(false));
    var output = new StreamWriter(Console.OpenStandardOutput(), new UTF8Encoding(false)) { AutoFlush = true };
    for (var line = input.ReadLine(); line != null; line = input.ReadLine())
      output.WriteLine(JsonConvert.SerializeObject(Answer(Values.Parse(line)), Ascii));
  }

  static JObject Answer(JObject asked) {
    try {
      if (asked["list"] != null)
        return new JObject { { "write", new JArray(Writers.All.Keys) }, { "read", new JArray(Readers.All.Keys) } };
      if (asked["write"] != null) {
        var written = Writers.All[(string)asked["write"]]((JObject)asked["values"]);
        return new JObject {
          { "content_type", written.ContentType }, { "body", Convert.ToBase64String(written.Bytes) },
        };
      }
      var body = Convert.FromBase64String((string)asked["body"]);
      if (asked["read"] != null)
        return new JObject { { "values", Values.Read(Readers.All[(string)asked["read"]](body)) } };
      var problem = Body.ReadProblem((string)asked["problem"], body);
      return new JObject {
        { "type", problem.Type }, { "title", problem.Title }, { "status", problem.Status },
        { "detail", problem.Detail }, { "code", problem.Code },
        { "errors", new JArray(problem.Errors.Select(error => new JArray(error.Name, error.Code, error.Message))) },
      };
    } catch (Exception error) {
      while (error.InnerException != null) error = error.InnerException;
      return new JObject { { "error", error.GetType().Name + ": " + error.Message } };
    }
  }
}
