//! Sets and maps, named and anonymous.
use super::keys::{self, Ty};
use super::print;
use super::rule::rule_verdict;
use super::tree::J;
use crate::ir::{Data, Element, Field, NftSet, SetRef};
use crate::parse::value;

/// What a map's elements give.
#[derive(Debug, Clone, Copy)]
pub(super) enum Gives {
    Nothing,
    Verdict,
    Value(Ty),
    Object,
    /// Of a declared map with several data fields or a type that is not known.
    Any,
}

/// `@name`, or a set in place.
pub(super) fn reference(data: &J<'_>, types: &[Ty], gives: Gives) -> Option<SetRef> {
    if let Some(name) = data.text() {
        return Some(SetRef::Named(name.strip_prefix('@')?.to_string()));
    }
    Some(SetRef::Anonymous(Box::new(anonymous(data, types, gives)?)))
}

/// A set in place: `{"set": […]}`, or one value.
pub(super) fn anonymous(data: &J<'_>, types: &[Ty], gives: Gives) -> Option<NftSet> {
    let items = match data.get("set") {
        Some(list) => list.items(),
        None => std::slice::from_ref(data),
    };
    let mut set = NftSet {
        constant: true,
        ..NftSet::default()
    };
    for item in items {
        let element = element(item, types, gives);
        set.interval |= element.key.iter().any(is_interval);
        set.elements.push(element);
    }
    Some(set)
}

fn is_interval(field: &Field) -> bool {
    match field {
        Field::Addr(a, b) => a != b,
        Field::Int(a, b) => a != b,
        Field::Bytes(a, b) => a != b,
        Field::Name(name) => name.wildcard,
        _ => false,
    }
}

/// One element; fields that cannot be read are kept as unknown.
pub(super) fn element(item: &J<'_>, types: &[Ty], gives: Gives) -> Element {
    let (key, data) = match (item, gives) {
        (J::Arr(pair), Gives::Verdict | Gives::Value(_) | Gives::Object | Gives::Any)
            if pair.len() == 2 =>
        {
            (&pair[0], Some(&pair[1]))
        }
        _ => (item, None),
    };
    let mut out = Element::default();
    let key = match key.get("elem") {
        Some(inner) => {
            out.expires = inner.get("expires").and_then(J::number);
            out.comment = inner.get_text("comment").map(str::to_string);
            out.conditional = ["limit", "quota", "ct count"]
                .iter()
                .any(|name| inner.get(name).is_some());
            inner.get("val").unwrap_or(&J::Null)
        }
        None => key,
    };
    let parts = match key.only() {
        Some(("concat", parts)) => parts.items(),
        _ => std::slice::from_ref(key),
    };
    for (at, part) in parts.iter().enumerate() {
        let ty = types.get(at).copied().unwrap_or(Ty::Guess);
        out.key
            .push(keys::field(part, ty).unwrap_or_else(|| Field::Unknown(print::expr(part))));
    }
    // A key with too few or too many parts was not understood as a whole.
    if !types.is_empty() && out.key.len() != types.len() && out.key != [Field::Any] {
        out.key = vec![Field::Unknown(print::expr(key))];
    }
    out.data = data.map(|data| given(data, gives)).or(match gives {
        Gives::Nothing => None,
        _ => Some(Data::Unknown(print::expr(item))),
    });
    out
}

fn given(data: &J<'_>, gives: Gives) -> Data {
    let unknown = || Data::Unknown(print::expr(data));
    if let Some(verdict) = rule_verdict(data) {
        return Data::Verdict(verdict);
    }
    let ty = match gives {
        Gives::Verdict | Gives::Nothing => return unknown(),
        Gives::Object => {
            return data
                .text()
                .map_or_else(unknown, |name| Data::Object(name.to_string()));
        }
        Gives::Value(ty) => ty,
        Gives::Any => Ty::Guess,
    };
    let parts = match data.only() {
        Some(("concat", parts)) => parts.items(),
        _ => std::slice::from_ref(data),
    };
    let ty = if parts.len() > 1 { Ty::Guess } else { ty };
    parts
        .iter()
        .map(|part| keys::field(part, ty))
        .collect::<Option<Vec<_>>>()
        .map_or_else(unknown, Data::Value)
}

/// The types in a declaration: `"ipv4_addr"`, `["ipv4_addr", "inet_service"]`, `"ipv4_addr . mark"`,
/// or `{"typeof": …}`.
pub(super) fn types(declared: &J<'_>, family: crate::ir::Family) -> Vec<Ty> {
    match declared {
        J::Str(text) => text
            .split(" . ")
            .map(|name| Ty::named(name.trim()).unwrap_or(Ty::Guess))
            .collect(),
        J::Arr(names) => names
            .iter()
            .map(|name| name.text().and_then(Ty::named).unwrap_or(Ty::Guess))
            .collect(),
        J::Obj(_) => {
            let inner = declared.get("typeof").unwrap_or(declared);
            let parts = match inner.only() {
                Some(("concat", parts)) => parts.items(),
                _ => inner.items(),
            };
            parts
                .iter()
                .map(|part| keys::key(part, family).map_or(Ty::Guess, |looked| looked.ty))
                .collect()
        }
        _ => vec![],
    }
}

/// Seconds in `1d2h3m4s5ms` or a plain number.
pub(super) fn seconds(text: &str) -> Option<u64> {
    if let Some(n) = value::number(text) {
        return Some(n);
    }
    let mut total = 0u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let factor = match &rest[..letters] {
            "w" => 604_800,
            "d" => 86_400,
            "h" => 3_600,
            "m" => 60,
            "s" => 1,
            "ms" => 0,
            _ => return None,
        };
        total = total.checked_add(count.checked_mul(factor)?)?;
        rest = &rest[letters..];
    }
    Some(total)
}
