// The classes that publishers and subscribers use for a record, one for each usual way to define it.
// `Values` fills and reads them by reflection, whatever the names of their members are.
using System;
using System.Runtime.Serialization;
using System.Xml.Schema;
using System.Xml.Serialization;

namespace Records {
  // Copied from the API page.
  public class task_activity_log {
    public Guid id { get; set; }
    public Guid? task_id { get; set; }
    public Guid? task_activity_id { get; set; }
    public Guid? user_id { get; set; }
    public Guid? contact_id { get; set; }
    public string subject { get; set; }
    public string description { get; set; }
    public DateTime? due_date { get; set; }
    public bool? is_closed { get; set; }
    public DateTime? date_closed { get; set; }
    public string reference_back_office { get; set; }
    public DateTime? modified_dateutc { get; set; }
  }

  // The contract's names with capital letters.
  public class Capitals {
    public Guid ID { get; set; }
    public Guid? Task_Id { get; set; }
    public Guid? Task_Activity_Id { get; set; }
    public Guid? User_Id { get; set; }
    public Guid? Contact_Id { get; set; }
    public string Subject { get; set; }
    public string Description { get; set; }
    public DateTime? Due_Date { get; set; }
    public bool? Is_Closed { get; set; }
    public DateTime? Date_Closed { get; set; }
    public string Reference_Back_Office { get; set; }
    public DateTime? Modified_DateUtc { get; set; }
  }

  // .NET names in the program, the contract's names on the wire. Newtonsoft.Json follows these attributes, too.
  [DataContract(Name = "task_activity_log", Namespace = "")]
  public class Contracted {
    [DataMember(Name = "id")] public Guid Id { get; set; }
    [DataMember(Name = "task_id")] public Guid? TaskId { get; set; }
    [DataMember(Name = "task_activity_id")] public Guid? TaskActivityId { get; set; }
    [DataMember(Name = "user_id")] public Guid? UserId { get; set; }
    [DataMember(Name = "contact_id")] public Guid? ContactId { get; set; }
    [DataMember(Name = "subject")] public string Subject { get; set; }
    [DataMember(Name = "description")] public string Description { get; set; }
    [DataMember(Name = "due_date")] public DateTime? DueDate { get; set; }
    [DataMember(Name = "is_closed")] public bool? IsClosed { get; set; }
    [DataMember(Name = "date_closed")] public DateTime? DateClosed { get; set; }
    [DataMember(Name = "reference_back_office")] public string ReferenceBackOffice { get; set; }
    [DataMember(Name = "modified_dateutc")] public DateTime? ModifiedDateUtc { get; set; }
  }

  // Written in the order of the record's fields instead of in the order of their names.
  [DataContract(Name = "task_activity_log", Namespace = "")]
  public class Ordered {
    [DataMember(Order = 1)] public Guid id { get; set; }
    [DataMember(Order = 2)] public Guid? task_id { get; set; }
    [DataMember(Order = 3)] public Guid? task_activity_id { get; set; }
    [DataMember(Order = 4)] public Guid? user_id { get; set; }
    [DataMember(Order = 5)] public Guid? contact_id { get; set; }
    [DataMember(Order = 6)] public string subject { get; set; }
    [DataMember(Order = 7)] public string description { get; set; }
    [DataMember(Order = 8)] public DateTime? due_date { get; set; }
    [DataMember(Order = 9)] public bool? is_closed { get; set; }
    [DataMember(Order = 10)] public DateTime? date_closed { get; set; }
    [DataMember(Order = 11)] public string reference_back_office { get; set; }
    [DataMember(Order = 12)] public DateTime? modified_dateutc { get; set; }
  }

  // With a company's own namespace, without nulls, and with numbered object references.
  [DataContract(Name = "task_activity_log", Namespace = "http://schemas.example.com/crm/2026", IsReference = true)]
  public class Sparse {
    [DataMember] public Guid id { get; set; }
    [DataMember(EmitDefaultValue = false)] public Guid? task_id { get; set; }
    [DataMember(EmitDefaultValue = false)] public Guid? task_activity_id { get; set; }
    [DataMember(EmitDefaultValue = false)] public Guid? user_id { get; set; }
    [DataMember(EmitDefaultValue = false)] public Guid? contact_id { get; set; }
    [DataMember(EmitDefaultValue = false)] public string subject { get; set; }
    [DataMember(EmitDefaultValue = false)] public string description { get; set; }
    [DataMember(EmitDefaultValue = false)] public DateTime? due_date { get; set; }
    [DataMember(EmitDefaultValue = false)] public bool? is_closed { get; set; }
    [DataMember(EmitDefaultValue = false)] public DateTime? date_closed { get; set; }
    [DataMember(EmitDefaultValue = false)] public string reference_back_office { get; set; }
    [DataMember(EmitDefaultValue = false)] public DateTime? modified_dateutc { get; set; }
  }

  // Dates with an offset.
  [DataContract(Name = "task_activity_log", Namespace = "")]
  public class Offsets {
    [DataMember] public Guid id { get; set; }
    [DataMember] public Guid? task_id { get; set; }
    [DataMember] public Guid? task_activity_id { get; set; }
    [DataMember] public Guid? user_id { get; set; }
    [DataMember] public Guid? contact_id { get; set; }
    [DataMember] public string subject { get; set; }
    [DataMember] public string description { get; set; }
    [DataMember] public DateTimeOffset? due_date { get; set; }
    [DataMember] public bool? is_closed { get; set; }
    [DataMember] public DateTimeOffset? date_closed { get; set; }
    [DataMember] public string reference_back_office { get; set; }
    [DataMember] public DateTimeOffset? modified_dateutc { get; set; }
  }

  // Members that cannot be null: those that are not set are default(Guid), DateTime.MinValue or false.
  [DataContract(Name = "task_activity_log", Namespace = "")]
  [XmlRoot("task_activity_log")]
  public class NeverNull {
    [DataMember] public Guid id { get; set; }
    [DataMember] public Guid task_id { get; set; }
    [DataMember] public Guid task_activity_id { get; set; }
    [DataMember] public Guid user_id { get; set; }
    [DataMember] public Guid contact_id { get; set; }
    [DataMember] public string subject { get; set; }
    [DataMember] public string description { get; set; }
    [DataMember] public DateTime due_date { get; set; }
    [DataMember] public bool is_closed { get; set; }
    [DataMember] public DateTime date_closed { get; set; }
    [DataMember] public string reference_back_office { get; set; }
    [DataMember] public DateTime modified_dateutc { get; set; }
  }

  // For XmlSerializer, with explicit element names, and with nil elements for strings that are null.
  [XmlRoot("task_activity_log")]
  public class Elements {
    [XmlElement("id")] public Guid Id { get; set; }
    [XmlElement("task_id")] public Guid? TaskId { get; set; }
    [XmlElement("task_activity_id")] public Guid? TaskActivityId { get; set; }
    [XmlElement("user_id")] public Guid? UserId { get; set; }
    [XmlElement("contact_id")] public Guid? ContactId { get; set; }
    [XmlElement("subject", IsNullable = true)] public string Subject { get; set; }
    [XmlElement("description", IsNullable = true)] public string Description { get; set; }
    [XmlElement("due_date")] public DateTime? DueDate { get; set; }
    [XmlElement("is_closed")] public bool? IsClosed { get; set; }
    [XmlElement("date_closed")] public DateTime? DateClosed { get; set; }
    [XmlElement("reference_back_office", IsNullable = true)] public string ReferenceBackOffice { get; set; }
    [XmlElement("modified_dateutc")] public DateTime? ModifiedDateUtc { get; set; }
  }

  // As xsd.exe generates it from a schema with optional elements and a namespace on the root element only.
  [XmlType(AnonymousType = true)]
  [XmlRoot("task_activity_log", Namespace = "http://schemas.example.com/crm/2026", IsNullable = false)]
  public class Specified {
    [XmlElement(Form = XmlSchemaForm.Unqualified)] public Guid id { get; set; }
    [XmlElement(Form = XmlSchemaForm.Unqualified)] public Guid task_id { get; set; }
    [XmlIgnore] public bool task_idSpecified { get; set; }
    [XmlElement(Form = XmlSchemaForm.Unqualified)] public Guid task_activity_id { get; set; }
    [XmlIgnore] public bool task_activity_idSpecified { get; set; }
    [XmlElement(Form = XmlSchemaForm.Unqualified)] public Guid user_id { get; set; }
    [XmlIgnore] public bool user_idSpecified { get; set; }
    [XmlElement(Form = XmlSchemaForm.Unqualified)] public Guid contact_id { get; set; }
    [XmlIgnore] public bool contact_idSpecified { get; set; }
    [XmlElement(Form = XmlSchemaForm.Unqualified)] public string subject { get; set; }
    [XmlElement(Form = XmlSchemaForm.Unqualified)] public string description { get; set; }
    [XmlElement(Form = XmlSchemaForm.Unqualified)] public DateTime due_date { get; set; }
    [XmlIgnore] public bool due_dateSpecified { get; set; }
    [XmlElement(Form = XmlSchemaForm.Unqualified)] public bool is_closed { get; set; }
    [XmlIgnore] public bool is_closedSpecified { get; set; }
    [XmlElement(Form = XmlSchemaForm.Unqualified)] public DateTime date_closed { get; set; }
    [XmlIgnore] public bool date_closedSpecified { get; set; }
    [XmlElement(Form = XmlSchemaForm.Unqualified)] public string reference_back_office { get; set; }
    [XmlElement(Form = XmlSchemaForm.Unqualified)] public DateTime modified_dateutc { get; set; }
    [XmlIgnore] public bool modified_dateutcSpecified { get; set; }
  }

  // Members are omitted if their ShouldSerialize method returns false. Newtonsoft.Json calls it, too.
  [XmlRoot("task_activity_log")]
  public class Asked {
    public Guid id { get; set; }
    public Guid? task_id { get; set; }
    public bool ShouldSerializetask_id() { return task_id != null; }
    public Guid? task_activity_id { get; set; }
    public bool ShouldSerializetask_activity_id() { return task_activity_id != null; }
    public Guid? user_id { get; set; }
    public bool ShouldSerializeuser_id() { return user_id != null; }
    public Guid? contact_id { get; set; }
    public bool ShouldSerializecontact_id() { return contact_id != null; }
    public string subject { get; set; }
    public string description { get; set; }
    public DateTime? due_date { get; set; }
    public bool ShouldSerializedue_date() { return due_date != null; }
    public bool? is_closed { get; set; }
    public bool ShouldSerializeis_closed() { return is_closed != null; }
    public DateTime? date_closed { get; set; }
    public bool ShouldSerializedate_closed() { return date_closed != null; }
    public string reference_back_office { get; set; }
    public DateTime? modified_dateutc { get; set; }
    public bool ShouldSerializemodified_dateutc() { return modified_dateutc != null; }
  }
}
