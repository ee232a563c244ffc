//! The form that both spellings of nft are read into: values as libnftables-json(5) has them, but lean, and with
//! an upper bound to what one item may hold.
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

/// A JSON value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum J<'a> {
    Null,
    Bool(bool),
    Num(i64),
    Str(Cow<'a, str>),
    Arr(Vec<J<'a>>),
    Obj(Vec<(Cow<'a, str>, J<'a>)>),
}

impl<'a> J<'a> {
    pub(super) fn str(text: impl Into<Cow<'a, str>>) -> J<'a> {
        J::Str(text.into())
    }
    /// An object with one member.
    pub(super) fn one(name: &'static str, value: J<'a>) -> J<'a> {
        J::Obj(vec![(Cow::Borrowed(name), value)])
    }
    pub(super) fn obj<const N: usize>(members: [(&'static str, J<'a>); N]) -> J<'a> {
        J::Obj(
            members
                .into_iter()
                .map(|(k, v)| (Cow::Borrowed(k), v))
                .collect(),
        )
    }
    pub(super) fn get(&self, name: &str) -> Option<&J<'a>> {
        match self {
            J::Obj(members) => members.iter().find(|(k, _)| k == name).map(|(_, v)| v),
            _ => None,
        }
    }
    /// Name and value of an object's only member.
    pub(super) fn only(&self) -> Option<(&str, &J<'a>)> {
        match self {
            J::Obj(members) if members.len() == 1 => Some((&members[0].0, &members[0].1)),
            _ => None,
        }
    }
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            J::Str(text) => Some(text),
            _ => None,
        }
    }
    pub(super) fn get_text(&self, name: &str) -> Option<&str> {
        self.get(name)?.text()
    }
    pub(super) fn list(&self) -> Option<&[J<'a>]> {
        match self {
            J::Arr(list) => Some(list),
            _ => None,
        }
    }
    /// A list's items, or the one value itself.
    pub(super) fn items(&self) -> &[J<'a>] {
        match self {
            J::Arr(list) => list,
            J::Null => &[],
            other => std::slice::from_ref(other),
        }
    }
    /// A number, or text that is one.
    pub(super) fn number(&self) -> Option<u64> {
        match self {
            J::Num(n) => u64::try_from(*n).ok(),
            J::Bool(b) => Some((*b).into()),
            J::Str(text) => crate::parse::value::number(text),
            _ => None,
        }
    }
    /// Whether a flag is in a list of flags, or is the one flag.
    pub(super) fn has_flag(&self, name: &str, flag: &str) -> bool {
        self.get(name)
            .is_some_and(|f| f.items().iter().any(|i| i.text() == Some(flag)))
    }
}

/// Values that one item (a rule, a set) may consist of.
pub(super) const MAX_NODES: usize = 5_000_000;

/// Reads one value; beyond the budget the rest is skipped and `cut` set.
#[derive(Clone, Copy)]
pub(super) struct Budget<'b> {
    pub(super) left: &'b Cell<usize>,
    pub(super) cut: &'b Cell<bool>,
}

impl Budget<'_> {
    fn take(&self) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        if left == 0 {
            self.cut.set(true);
        }
        left > 0
    }
}

impl<'de> DeserializeSeed<'de> for Budget<'_> {
    type Value = J<'de>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<J<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Budget<'_> {
    type Value = J<'de>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E: Error>(self) -> Result<J<'de>, E> {
        Ok(J::Null)
    }
    fn visit_bool<E: Error>(self, v: bool) -> Result<J<'de>, E> {
        Ok(J::Bool(v))
    }
    fn visit_i64<E: Error>(self, v: i64) -> Result<J<'de>, E> {
        Ok(J::Num(v))
    }
    fn visit_u64<E: Error>(self, v: u64) -> Result<J<'de>, E> {
        Ok(i64::try_from(v).map_or_else(|_| J::str(v.to_string()), J::Num))
    }
    fn visit_f64<E: Error>(self, v: f64) -> Result<J<'de>, E> {
        Ok(J::str(v.to_string()))
    }
    fn visit_borrowed_str<E: Error>(self, v: &'de str) -> Result<J<'de>, E> {
        Ok(J::str(v))
    }
    fn visit_str<E: Error>(self, v: &str) -> Result<J<'de>, E> {
        Ok(J::str(v.to_string()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<J<'de>, A::Error> {
        let mut out = Vec::new();
        while self.take() {
            match seq.next_element_seed(self)? {
                Some(item) => out.push(item),
                None => return Ok(J::Arr(out)),
            }
        }
        while seq.next_element::<serde::de::IgnoredAny>()?.is_some() {}
        Ok(J::Arr(out))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<J<'de>, A::Error> {
        let mut out = Vec::new();
        while self.take() {
            match map.next_key_seed(Name)? {
                Some(name) => out.push((name, map.next_value_seed(self)?)),
                None => return Ok(J::Obj(out)),
            }
        }
        while map
            .next_entry::<serde::de::IgnoredAny, serde::de::IgnoredAny>()?
            .is_some()
        {}
        Ok(J::Obj(out))
    }
}

/// A member's name, borrowed where it has no escapes.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_str(self)
    }
}
impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }
    fn visit_borrowed_str<E: Error>(self, v: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(v))
    }
    fn visit_str<E: Error>(self, v: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(v.to_string()))
    }
}
