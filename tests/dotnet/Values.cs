// Converts values between the test's JSON and the classes in Records.cs, without the serializers under test.
//
// In the test's JSON a Guid is its 32 digits with hyphens, and a date is "<ticks> <kind>". The kind says to which clock
// .NET's ticks refer: Utc, Local or Unspecified for a DateTime, an offset in minutes for a DateTimeOffset.
// Absent and null are the same here.
using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using System.Reflection;
using Newtonsoft.Json;
using Newtonsoft.Json.Linq;

public static class Values {
  static readonly string[] Fields = {
    "id", "task_id", "task_activity_id", "user_id", "contact_id", "subject", "description", "due_date", "is_closed",
    "date_closed", "reference_back_office", "modified_dateutc",
  };

  // Parses a line of the test's JSON. Its dates stay strings.
  public static JObject Parse(string line) {
    return JObject.Load(new JsonTextReader(new System.IO.StringReader(line)) { DateParseHandling = DateParseHandling.None });
  }

  public static T Fill<T>(JObject values) where T : new() {
    var record = new T();
    foreach (var field in Fields) {
      var value = (JValue)values[field];
      if (value == null || value.Value == null) continue;
      var member = Member(typeof(T), field);
      var type = Nullable.GetUnderlyingType(member.PropertyType) ?? member.PropertyType;
      member.SetValue(record, FromTest(value.Value, type), null);
      var specified = typeof(T).GetProperty(member.Name + "Specified");
      if (specified != null) specified.SetValue(record, true, null);
    }
    return record;
  }

  public static JObject Read(object record) {
    var values = new JObject();
    foreach (var field in Fields) {
      var member = Member(record.GetType(), field);
      var specified = record.GetType().GetProperty(member.Name + "Specified");
      var there = specified == null || (bool)specified.GetValue(record, null);
      values[field] = there ? ToTest(member.GetValue(record, null)) : null;
    }
    return values;
  }

  static PropertyInfo Member(Type type, string field) {
    return type.GetProperties().Single(member => Plain(member.Name) == Plain(field));
  }

  static string Plain(string name) {
    return name.Replace("_", "").ToLowerInvariant();
  }

  static object FromTest(object value, Type type) {
    if (type == typeof(Guid)) return new Guid((string)value);
    if (type == typeof(string) || type == typeof(bool)) return value;
    var parts = ((string)value).Split(' ');
    var ticks = long.Parse(parts[0], CultureInfo.InvariantCulture);
    if (type == typeof(DateTime)) return new DateTime(ticks, (DateTimeKind)Enum.Parse(typeof(DateTimeKind), parts[1]));
    return new DateTimeOffset(ticks, TimeSpan.FromMinutes(int.Parse(parts[1], CultureInfo.InvariantCulture)));
  }

  // Dates are converted to UTC, whether they are local or have an offset.
  static JToken ToTest(object value) {
    if (value == null) return JValue.CreateNull();
    if (value is Guid) return ((Guid)value).ToString("D");
    if (value is DateTimeOffset) return ((DateTimeOffset)value).UtcTicks + " Utc";
    if (!(value is DateTime)) return new JValue(value);
    var date = (DateTime)value;
    if (date.Kind == DateTimeKind.Local) date = date.ToUniversalTime();
    return date.Ticks + " " + date.Kind;
  }
}
