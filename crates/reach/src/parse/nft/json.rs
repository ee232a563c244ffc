//! `nft -j list ruleset`: libnftables-json(5).
use super::sets::{self, Gives};
use super::tree::{Budget, J, MAX_NODES};
use super::{Reader, base_of, family, print, unread};
use crate::ir::{Family, NamePattern, NftSet, Rule};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::cell::Cell;
use std::fmt;

pub(super) fn read(text: &str, reader: &mut Reader) {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let result = Document(reader)
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end());
    if let Err(error) = result {
        let line = u32::try_from(error.line()).unwrap_or(u32::MAX);
        reader.notes.add(
            line,
            format!("the dump breaks off: {error}; what is missing may do anything"),
        );
        reader.lose(line);
    }
}

/// The object around everything, its items handled one by one.
struct Document<'r>(&'r mut Reader);

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the member \"nftables\"")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            if name == "nftables" {
                map.next_value_seed(Items(self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct Items<'r>(&'r mut Reader);

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of tables, chains, rules and sets")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let cut = Cell::new(false);
        loop {
            let left = Cell::new(MAX_NODES);
            cut.set(false);
            let budget = Budget {
                left: &left,
                cut: &cut,
            };
            match seq.next_element_seed(budget)? {
                Some(value) => item(&value, cut.get(), self.0),
                None => return Ok(()),
            }
        }
    }
}

fn item(value: &J<'_>, cut: bool, reader: &mut Reader) {
    let Some((mut kind, mut body)) = value.only() else {
        lost(value, reader);
        return;
    };
    if kind == "add"
        && let Some((inner, inner_body)) = body.only()
    {
        (kind, body) = (inner, inner_body);
    }
    let done = match kind {
        "metainfo" => Some(()),
        "table" => table(body, reader),
        "chain" => chain(body, reader),
        "rule" => rule(body, cut, reader),
        "set" | "map" => set(body, kind, cut, reader),
        "element" => element(body, cut, reader),
        "counter" | "quota" | "limit" | "ct helper" | "ct timeout" | "ct expectation"
        | "secmark" | "synproxy" | "flowtable" | "tunnel" => object(body, kind, reader),
        _ => None,
    };
    if done.is_none() {
        lost(value, reader);
    }
}

fn lost(value: &J<'_>, reader: &mut Reader) {
    let text = print::expr(value);
    reader.notes.add(0, format!("not understood: {text}"));
    reader.lose(0);
}

/// The table that an item belongs to.
fn owner(body: &J<'_>, reader: &mut Reader) -> Option<usize> {
    let family = family(body.get_text("family")?)?;
    Some(reader.table(family, body.get_text("table")?))
}

fn table(body: &J<'_>, reader: &mut Reader) -> Option<()> {
    let family = family(body.get_text("family")?)?;
    let at = reader.table(family, body.get_text("name")?);
    for flag in body.get("flags").map(J::items).unwrap_or_default() {
        reader.table_flag(at, flag.text().unwrap_or("?"), 0);
    }
    reader.tables[at].comment = body.get_text("comment").map(str::to_string);
    Some(())
}

fn chain(body: &J<'_>, reader: &mut Reader) -> Option<()> {
    let table = owner(body, reader)?;
    let place = reader.chain(table, body.get_text("name")?);
    reader.at(place).comment = body.get_text("comment").map(str::to_string);
    if let Some(hook) = body.get_text("hook") {
        let devices = body
            .get("dev")
            .or_else(|| body.get("devs"))
            .map(J::items)
            .unwrap_or_default()
            .iter()
            .filter_map(|d| d.text().map(NamePattern::nft))
            .collect();
        let priority = match body.get("prio")? {
            J::Num(n) => *n,
            J::Str(text) => text.parse().ok()?,
            _ => return None,
        };
        let base = base_of(
            body.get_text("type")?,
            hook,
            priority,
            body.get_text("policy"),
            devices,
        )?;
        reader.base(place, base);
    }
    Some(())
}

fn rule(body: &J<'_>, cut: bool, reader: &mut Reader) -> Option<()> {
    let table = owner(body, reader)?;
    let place = reader.chain(table, body.get_text("chain")?);
    let statements = body.get("expr").map(J::items).unwrap_or_default();
    let mut rule = Rule {
        handle: body.get("handle").and_then(J::number),
        comment: body.get_text("comment").map(str::to_string),
        text: print::rule(statements),
        ..Rule::default()
    };
    if cut {
        rule.statements = unread("(a rule too large to keep)", 0).statements;
        reader
            .notes
            .add(0, format!("a rule too large: {}", rule.text));
        reader.at(place).rules.push(rule);
        return Some(());
    }
    reader.rule(place, statements, rule);
    Some(())
}

/// Types of a set's key, and what a map's elements give.
fn declared(body: &J<'_>, kind: &str, family: Family) -> (Vec<super::keys::Ty>, Gives) {
    let types = body
        .get("type")
        .map(|t| sets::types(t, family))
        .unwrap_or_default();
    let gives = match (kind, body.get("map")) {
        ("set", _) => Gives::Nothing,
        (_, Some(J::Str(text))) if text == "verdict" => Gives::Verdict,
        (_, Some(J::Str(text)))
            if matches!(
                text.as_ref(),
                "counter" | "quota" | "limit" | "ct helper" | "ct timeout" | "secmark" | "synproxy"
            ) =>
        {
            Gives::Object
        }
        (_, Some(data)) => match sets::types(data, family)[..] {
            [ty] => Gives::Value(ty),
            _ => Gives::Any,
        },
        (_, None) => Gives::Any,
    };
    (types, gives)
}

fn set(body: &J<'_>, kind: &str, cut: bool, reader: &mut Reader) -> Option<()> {
    let table = owner(body, reader)?;
    let family = reader.tables[table].family;
    let (types, gives) = declared(body, kind, family);
    let flag = |name| body.has_flag("flags", name);
    let at = reader.set(
        table,
        NftSet {
            name: body.get_text("name")?.to_string(),
            constant: flag("constant"),
            interval: flag("interval"),
            dynamic: flag("dynamic"),
            timeout: flag("timeout") || body.get("timeout").is_some(),
            incomplete: cut,
            comment: body.get_text("comment").map(str::to_string),
            elements: vec![],
        },
    );
    if cut {
        reader.notes.add(0, "a set too large to keep whole");
    }
    let items = body.get("elem").map(J::items).unwrap_or_default();
    reader.elements(table, at, items, &types, gives);
    reader.declared.insert((table, at), (types, gives));
    Some(())
}

/// Elements on their own, as `nft -j` prints very large sets in parts.
fn element(body: &J<'_>, cut: bool, reader: &mut Reader) -> Option<()> {
    let table = owner(body, reader)?;
    let name = body.get_text("name")?.to_string();
    let &at = reader.sets.get(&(table, name))?;
    reader.tables[table].sets[at].incomplete |= cut;
    let items = body.get("elem").map(J::items).unwrap_or_default();
    let (types, gives) = reader.declared.get(&(table, at)).cloned()?;
    reader.elements(table, at, items, &types, gives);
    Some(())
}

fn object(body: &J<'_>, kind: &str, reader: &mut Reader) -> Option<()> {
    let table = owner(body, reader)?;
    let name = body.get_text("name")?.to_string();
    reader.object(table, kind, &name, print::expr(body));
    Some(())
}
