// SPDX-License-Identifier: GPL-2.0
//! `kvmate schema`: what `--json` gives, as JSON schemas, made of the very types. `tools/schema` has them, too.

use crate::{
    doctor, gmem, inject, json, list,
    map::{Map, Page},
    records::{Exit, Fault, Irq, Msr, Time, Vcpu},
    snapshot::Snapshot,
    tables,
};
use anyhow::Result;
use clap::{Args, ValueEnum};
use schemars::{generate::SchemaSettings, JsonSchema, Schema};
use std::io::Write;

/// What it takes.
#[derive(Debug, Args)]
#[command(after_help = "\
A document of another version than the schema's may have more fields, and is not of another form before
`version` grows.
Example:
  kvmate schema exits > exits.json")]
pub struct Arguments {
    /// Whose
    name: Name,
}

/// What has a schema.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    List,
    Exits,
    Times,
    Msr,
    Faults,
    Irq,
    Vcpus,
    Snapshot,
    Map,
    /// Of `map --page`
    MapPage,
    Inject,
    /// Of `inject --storm`
    InjectStorm,
    /// Of `gmem list`
    GmemList,
    /// Of `gmem map` and `gmem query`
    Gmem,
    Doctor,
}

impl Name {
    fn called(self) -> String {
        let value = self.to_possible_value();
        value
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }

    fn schema(self) -> Schema {
        let mut schema = match self {
            Self::List => of::<list::Document>(),
            Self::Exits => of::<tables::Document<Exit>>(),
            Self::Times => of::<tables::Document<Time>>(),
            Self::Msr => of::<tables::Document<Msr>>(),
            Self::Faults => of::<tables::Document<Fault>>(),
            Self::Irq => of::<tables::Document<Irq>>(),
            Self::Vcpus => of::<tables::Document<Vcpu>>(),
            Self::Snapshot => of::<json::OfVm<Snapshot>>(),
            Self::Map => of::<json::OfVm<Map>>(),
            Self::MapPage => of::<json::OfVm<Page>>(),
            Self::Inject => of::<json::OfVm<inject::Injected<'_>>>(),
            Self::InjectStorm => of::<json::OfVm<inject::storm::Counts>>(),
            Self::GmemList => of::<json::Plain<gmem::list::Files>>(),
            Self::Gmem => of::<json::Plain<gmem::Content>>(),
            Self::Doctor => of::<json::Plain<doctor::Report>>(),
        };
        schema.insert("title".into(), format!("kvmate {}", self.called()).into());
        schema
    }
}

/// Of what is written, not of what would be read: no field may be left out.
fn of<T: JsonSchema>() -> Schema {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    settings.into_generator().into_root_schema_for::<T>()
}

/// Do it.
pub fn run(asked: &Arguments) -> Result<()> {
    let mut out = anstream::stdout().lock();
    json::pretty(&mut out, &asked.name.schema())?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::{collections::BTreeSet, fs, path::Path};

    /// The names of all fields in a schema.
    fn fields(schema: &Value, into: &mut BTreeSet<String>) {
        match schema {
            Value::Object(members) => {
                if let Some(Value::Object(properties)) = members.get("properties") {
                    into.extend(properties.keys().cloned());
                }
                members.values().for_each(|member| fields(member, into));
            }
            Value::Array(members) => members.iter().for_each(|member| fields(member, into)),
            _ => {}
        }
    }

    #[test]
    fn files_are_what_the_types_give() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
        let documented = include_str!("../json.md");
        let mut expected = BTreeSet::new();
        for name in Name::value_variants() {
            let called = name.called();
            let file = format!("{called}.json");
            let schema = serde_json::to_value(name.schema()).unwrap();
            let text = fs::read_to_string(folder.join(&file)).unwrap_or_default();
            let committed: Value = serde_json::from_str(&text).unwrap_or_default();
            assert_eq!(
                committed, schema,
                "kvmate schema {called} > tools/schema/{file}"
            );
            // What is not documented nobody can rely on.
            let mut all = BTreeSet::new();
            fields(&schema, &mut all);
            assert!(all.contains("version"), "{called}: {all:?}");
            for field in all {
                assert!(
                    documented.contains(&format!("`{field}`")),
                    "{called}: {field}"
                );
            }
            expected.insert(file);
        }
        let there = fs::read_dir(folder).unwrap();
        let there: BTreeSet<_> = there
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(there, expected);
    }
}
