//! Sets, maps and ipsets.
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

use super::{Ipv, NamePattern, RuleVerdict};

/// A set as a rule names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SetRef {
    /// A named set or map of the rule's table.
    Named(String),
    /// A set of this rule alone; its name is the kernel's (`__set0`) or empty.
    Anonymous(Box<NftSet>),
}

/// An nf_tables set, map or verdict map.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NftSet {
    /// Name; empty for an anonymous set read from text.
    pub name: String,
    /// `flags constant`.
    pub constant: bool,
    /// `flags interval`.
    pub interval: bool,
    /// `flags dynamic`: rules put elements in. What is listed is what is there now.
    pub dynamic: bool,
    /// `flags timeout`: elements may run out.
    pub timeout: bool,
    /// The elements could not all be read: whatever is not listed may be in it or not.
    pub incomplete: bool,
    /// Comment. Untrusted text.
    pub comment: Option<String>,
    /// Elements.
    pub elements: Vec<Element>,
}

/// An element of a set or map.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Element {
    /// One field for each part of the key.
    pub key: Vec<Field>,
    /// What a map gives; `None` in a plain set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
    /// Seconds left, for an element with a timeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// Comment. Untrusted text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// It carries a limit, quota or connection count that can make a lookup fail.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub conditional: bool,
}

/// One field of an element: an interval of values, a name, or everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Field {
    /// Addresses `first..=last` of one version.
    Addr(IpAddr, IpAddr),
    /// Numbers `first..=last`: ports, protocols, marks, states, interface indexes without a name.
    Int(u64, u64),
    /// An interface, helper or set name.
    Name(NamePattern),
    /// Byte strings `first..=last` of equal length.
    Bytes(Vec<u8>, Vec<u8>),
    /// ipset's `PROTO:PORT` or `PROTO:FIRST-LAST`; no protocol in `bitmap:port`.
    Port {
        /// IANA protocol number.
        proto: Option<u8>,
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
    },
    /// The catch-all element `*`.
    Any,
    /// Could not be read; may match or not.
    Unknown(String),
}

/// What a map's element gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Data {
    /// A verdict (vmap).
    Verdict(RuleVerdict),
    /// A value; two fields for `addr . port`. An interval stands for the kernel's choice.
    Value(Vec<Field>),
    /// Name of an object.
    Object(String),
    /// Could not be read.
    Unknown(String),
}

/// A set of the ipset subsystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpSet {
    /// Name.
    pub name: String,
    /// Type as ipset spells it: `hash:ip`, `hash:net,port,net`, `bitmap:port`, `list:set`…
    pub kind: String,
    /// `None` for types without addresses.
    pub family: Option<Ipv>,
    /// `netmask N` of hash:ip and bitmap:ip: the packet's address is cut to this prefix before the lookup
    /// (and entries are stored so).
    #[serde(default)]
    pub netmask: Option<u8>,
    /// `markmask` of hash:ip,mark.
    #[serde(default)]
    pub markmask: Option<u32>,
    /// Entries can run out (`timeout`).
    #[serde(default)]
    pub timeout: bool,
    /// An option or an entry was not understood: whatever is not listed may be in it or not.
    #[serde(default)]
    pub incomplete: bool,
    /// Entries; for `list:set` one [`Field::Name`] each, in order.
    #[serde(default)]
    pub entries: Vec<IpSetEntry>,
}

/// An entry of an ipset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpSetEntry {
    /// One field for each dimension. An interface field `physdev:NAME` is [`Field::Unknown`].
    pub key: Vec<Field>,
    /// `nomatch`: an exception from a wider entry.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub nomatch: bool,
    /// Seconds left; `None`: stays. 0 as ipset prints it means it stays too, and is read as `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// Comment. Untrusted text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}
