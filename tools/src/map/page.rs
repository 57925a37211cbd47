// SPDX-License-Identifier: GPL-2.0
//! What is behind one guest-physical address: the facts of the module's file `lookup`.

use crate::table::number;
use anyhow::{Context, Result};
use schemars::{json_schema, JsonSchema, Schema, SchemaGenerator};
use serde::{ser::SerializeMap, Serialize, Serializer};
use std::{
    borrow::Cow,
    io::{self, Write},
};

/// The facts, in the module's order. In JSON they are an object, `page`; what is a number is one.
#[derive(Debug)]
pub struct Page(Vec<(String, String)>);

impl Page {
    /// From the file's text.
    pub fn new(text: &str) -> Result<Self> {
        let facts = text.lines().map(|line| {
            let fact = line.split_once(' ');
            let (name, fact) = fact.with_context(|| format!("lookup: the line {line:?}"))?;
            Ok((name.to_owned(), fact.to_owned()))
        });
        Ok(Self(facts.collect::<Result<_>>()?))
    }

    fn text(&self, name: &str) -> Option<&str> {
        let fact = self.0.iter().find(|(fact, _)| fact == name);
        fact.map(|(_, fact)| fact.as_str())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name).and_then(number)
    }

    /// Tell it.
    pub fn tell(&self, out: &mut impl Write) -> io::Result<()> {
        for (name, fact) in &self.0 {
            writeln!(out, "{name:<17} {fact}")?;
        }
        let there = |name: &str| self.number(name).is_some();
        if !there("slot") {
            writeln!(out, "no slot is there: the guest's accesses are MMIO")?;
        } else if !there("pfn") {
            let why = match (self.text("backing"), self.text("stage2_kind")) {
                (Some(backing), _) if backing.starts_with("none") => {
                    "nothing is mapped in the VMM's memory there: an access ends KVM_RUN with an error"
                }
                (_, Some("leaf")) => {
                    "the VMM's memory has no page there, the guest has: of guest_memfd, or of a VMM that is gone"
                }
                _ => "the host has no page there now: it comes when somebody touches it",
            };
            writeln!(out, "{why}")?;
        }
        match (self.number("refcount"), self.number("expected")) {
            (Some(found), Some(expected)) if found > expected => {
                let over = found - expected;
                writeln!(out, "somebody holds the folio: {over} references more than the page cache and mappings have")
            }
            _ => Ok(()),
        }
    }
}

impl Serialize for Page {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        struct Facts<'a>(&'a Page);
        impl Serialize for Facts<'_> {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                let facts = &self.0 .0;
                let mut map = to.serialize_map(Some(facts.len()))?;
                for (name, fact) in facts {
                    // Flags are names; but those without one are a number.
                    let flags = name.ends_with("flags");
                    match (number(fact).filter(|_| !flags), fact.parse::<i64>()) {
                        (Some(number), _) => map.serialize_entry(name, &number)?,
                        (None, Ok(number)) => map.serialize_entry(name, &number)?,
                        (None, Err(_)) => map.serialize_entry(name, fact)?,
                    }
                }
                map.end()
            }
        }
        let mut map = to.serialize_map(Some(1))?;
        map.serialize_entry("page", &Facts(self))?;
        map.end()
    }
}

impl JsonSchema for Page {
    fn schema_name() -> Cow<'static, str> {
        "Page".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "properties": {
                "page": {
                    "type": "object",
                    "description": "The facts of the VM's file `lookup`, under their names there.",
                    "properties": { "gpa": { "type": "integer" } },
                    "required": ["gpa"],
                    "additionalProperties": { "type": ["integer", "string"] }
                }
            },
            "required": ["page"]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "gpa 0x40000000\nslot 1\nbacking tmpfs shared 1 42 0x0 /memfd:a\n\
                        pfn 0x1234\nrefcount 4\nexpected 3\nnode -1\nflags 0x8000000\n";

    fn told(text: &str) -> String {
        let mut out = Vec::new();
        Page::new(text).unwrap().tell(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn facts_and_conclusions() {
        let text = told(TEXT);
        assert!(
            text.starts_with("gpa               0x40000000\nslot              1\n"),
            "{text}"
        );
        assert!(text.ends_with(
            "holds the folio: 1 references more than the page cache and mappings have\n"
        ));
        let text = told("gpa 0x0\n");
        assert!(text.ends_with("no slot is there: the guest's accesses are MMIO\n"));
        for (facts, end) in [
            ("", "comes when somebody touches it\n"),
            (
                "backing anon private 1\nstage2_kind mmio\n",
                "comes when somebody touches it\n",
            ),
            ("backing none\n", "an access ends KVM_RUN with an error\n"),
            (
                "backing none\nstage2_kind leaf\n",
                "an access ends KVM_RUN with an error\n",
            ),
            (
                "stage2_kind leaf\n",
                "of guest_memfd, or of a VMM that is gone\n",
            ),
        ] {
            let text = told(&format!("gpa 0x0\nslot 0\n{facts}"));
            assert!(text.ends_with(end), "{text}");
        }
        assert!(Page::new("gpa\n").is_err());
    }

    #[test]
    fn json() {
        let page = Page::new(TEXT).unwrap();
        let json = serde_json::to_value(&page).unwrap();
        assert_eq!(json["page"]["gpa"], 0x4000_0000);
        assert_eq!(json["page"]["node"], -1);
        assert_eq!(json["page"]["flags"], "0x8000000");
        assert_eq!(json["page"]["backing"], "tmpfs shared 1 42 0x0 /memfd:a");
    }
}
