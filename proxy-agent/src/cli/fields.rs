//! The flags of fields: made from the table of fields.

use clap::builder::{StringValueParser, TypedValueParser, ValueParser};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use serde_json::Value;

use crate::config::fields::{FIELDS, Field, Form};

/// The flags that were given, with what they say.
#[derive(Clone, Default, Debug)]
pub(super) struct FieldFlags(pub(super) Vec<(&'static Field, Value)>);

impl clap::Args for FieldFlags {
    fn augment_args(command: Command) -> Command {
        FIELDS.iter().filter_map(|field| Some(arg(field, field.flag?))).fold(command, Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for FieldFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = FIELDS.iter().filter_map(|field| {
            let flag = field.flag?;
            let is_given = matches.value_source(flag) == Some(ValueSource::CommandLine);
            let values = matches.get_many::<Value>(flag).filter(|_| is_given)?;
            Some((field, values.cloned().reduce(|a, b| joined(field.form, a, b))?))
        });
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// What a flag says that is there twice: a list is continued, another value is replaced.
fn joined(form: Form, before: Value, after: Value) -> Value {
    match (form, before, after) {
        (Form::List | Form::Modules, Value::Array(mut before), Value::Array(after)) => {
            before.extend(after);
            before.into()
        }
        (Form::Gates, Value::Object(mut before), Value::Object(after)) => {
            before.extend(after);
            before.into()
        }
        (_, _, after) => after,
    }
}

fn arg(field: &'static Field, flag: &'static str) -> Arg {
    let parser = StringValueParser::new().try_map(|text| field.parse(&text));
    let arg = Arg::new(flag).long(flag).help(field.about).action(ArgAction::Append).value_parser(ValueParser::new(parser));
    let arg = arg.value_name(value_name(field.form)).allow_negative_numbers(true);
    let arg = match flag {
        "v" => arg.short('v'),
        "logging-format" => arg.visible_alias("log-format"),
        "manifests" => arg.conflicts_with_all(["kubeconfig", "master"]),
        _ => arg,
    };
    if field.form == Form::Bool { arg.num_args(0..=1).require_equals(true).default_missing_value("true") } else { arg }
}

fn value_name(form: Form) -> &'static str {
    match form {
        Form::Text => "TEXT",
        Form::Name => "NAME",
        Form::Bool => "BOOL",
        Form::Int | Form::Level => "NUMBER",
        Form::Float => "FLOAT",
        Form::Duration => "DURATION",
        Form::List => "LIST",
        Form::Gates => "NAME=BOOL,...",
        Form::Modules => "PATTERN=N,...",
        Form::Ip => "IP",
        Form::IpPort => "IP[:PORT]",
        Form::Amount => "BYTES",
    }
}
