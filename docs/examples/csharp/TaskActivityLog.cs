using System;
using System.Collections.Generic;
using System.IO;
using System.Runtime.Serialization;
using System.Text;
using System.Xml.Serialization;
using Newtonsoft.Json;

namespace TaskActivityLogs
{
    /// <summary>
    /// A task_activity_log, in requests and in replies. The attributes work with Newtonsoft.Json,
    /// DataContractSerializer and XmlSerializer. The XML of a reply has no namespace.
    /// </summary>
    [DataContract(Name = "task_activity_log", Namespace = "")]
    [XmlRoot("task_activity_log")]
    public class TaskActivityLog
    {
        /// <summary>Required. Guid.Empty is rejected.</summary>
        [DataMember(Name = "id"), XmlElement("id")]
        public Guid Id { get; set; }

        [DataMember(Name = "task_id"), XmlElement("task_id")]
        public Guid? TaskId { get; set; }

        [DataMember(Name = "task_activity_id"), XmlElement("task_activity_id")]
        public Guid? TaskActivityId { get; set; }

        [DataMember(Name = "user_id"), XmlElement("user_id")]
        public Guid? UserId { get; set; }

        [DataMember(Name = "contact_id"), XmlElement("contact_id")]
        public Guid? ContactId { get; set; }

        // Without IsNullable, XmlSerializer reads a null string as "".
        [DataMember(Name = "subject"), XmlElement("subject", IsNullable = true)]
        public string Subject { get; set; }

        [DataMember(Name = "description"), XmlElement("description", IsNullable = true)]
        public string Description { get; set; }

        // DateTime, in UTC. XmlSerializer writes nothing for a DateTimeOffset, and DataContractSerializer, which writes
        // it as two elements, cannot read it from a reply.
        [DataMember(Name = "due_date"), XmlElement("due_date")]
        public DateTime? DueDate { get; set; }

        [DataMember(Name = "is_closed"), XmlElement("is_closed")]
        public bool? IsClosed { get; set; }

        [DataMember(Name = "date_closed"), XmlElement("date_closed")]
        public DateTime? DateClosed { get; set; }

        [DataMember(Name = "reference_back_office"), XmlElement("reference_back_office", IsNullable = true)]
        public string ReferenceBackOffice { get; set; }

        /// <summary>Set by the database at each write; ignored in a request.</summary>
        [DataMember(Name = "modified_dateutc"), XmlElement("modified_dateutc")]
        public DateTime? ModifiedDateUtc { get; set; }
    }

    /// <summary>Why a request was rejected (RFC 9457).</summary>
    [XmlRoot("problem", Namespace = "urn:ietf:rfc:7807")]
    public class Problem
    {
        [JsonProperty("type"), XmlElement("type")]
        public string Type { get; set; }

        [JsonProperty("title"), XmlElement("title")]
        public string Title { get; set; }

        [JsonProperty("status"), XmlElement("status")]
        public int Status { get; set; }

        [JsonProperty("detail"), XmlElement("detail")]
        public string Detail { get; set; }

        /// <summary>The error code for programs, such as invalid_uuid.</summary>
        [JsonProperty("code"), XmlElement("code")]
        public string Code { get; set; }

        [JsonProperty("errors"), XmlArray("errors"), XmlArrayItem("i")]
        public List<FieldError> Errors { get; set; }
    }

    /// <summary>What is wrong with one field.</summary>
    public class FieldError
    {
        [JsonProperty("name"), XmlElement("name")]
        public string Name { get; set; }

        [JsonProperty("code"), XmlElement("code")]
        public string Code { get; set; }

        [JsonProperty("message"), XmlElement("message")]
        public string Message { get; set; }
    }

    /// <summary>Bodies of messages. A reply is in the format of its request, so a subscriber may receive both.</summary>
    public static class Body
    {
        private static readonly JsonSerializerSettings Json = new JsonSerializerSettings
        {
            // Keep all dates in UTC; by default, dates that are read become local time.
            DateTimeZoneHandling = DateTimeZoneHandling.Utc,
        };

        public static byte[] ToJson(TaskActivityLog record)
        {
            return Encoding.UTF8.GetBytes(JsonConvert.SerializeObject(record, Json));
        }

        public static byte[] ToXml(TaskActivityLog record)
        {
            using (var stream = new MemoryStream())
            {
                new DataContractSerializer(typeof(TaskActivityLog)).WriteObject(stream, record);
                return stream.ToArray();
            }
        }

        /// <summary>
        /// The record in a reply of type task_activity_log.stored. Read with DataContractSerializer, because XmlSerializer
        /// reads a string of blanks as "".
        /// </summary>
        public static TaskActivityLog ReadRecord(string contentType, byte[] body)
        {
            if (!contentType.EndsWith("xml"))
                return JsonConvert.DeserializeObject<TaskActivityLog>(Encoding.UTF8.GetString(body), Json);
            using (var stream = new MemoryStream(body))
                return (TaskActivityLog)new DataContractSerializer(typeof(TaskActivityLog)).ReadObject(stream);
        }

        /// <summary>The problem in a reply of type task_activity_log.rejected.</summary>
        public static Problem ReadProblem(string contentType, byte[] body)
        {
            if (!contentType.EndsWith("xml"))
                return JsonConvert.DeserializeObject<Problem>(Encoding.UTF8.GetString(body));
            using (var stream = new MemoryStream(body))
                return (Problem)new XmlSerializer(typeof(Problem)).Deserialize(stream);
        }
    }
}
