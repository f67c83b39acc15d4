//! Values in the forms that Go programs read and write: what operators know from kube-proxy's flags and files.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A span of time in nanoseconds, which may be negative: whether it may be is for the validation to say.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct GoDuration(pub i64);

/// Units by their names, in nanoseconds.
const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl GoDuration {
    /// So many seconds.
    pub const fn seconds(seconds: i64) -> Self {
        Self(seconds * 1_000_000_000)
    }

    /// None if it is negative.
    pub fn get(self) -> Option<Duration> {
        u64::try_from(self.0).ok().map(Duration::from_nanos)
    }
}

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a duration such as 30s or 1h15m0s");
        let (sign, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Ok(Self(0));
        }
        if rest.is_empty() {
            return Err(wrong());
        }
        let mut sum = 0i64;
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
            let (number, after) = rest.split_at(end);
            let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
            let (unit, after) = after.split_at(end);
            let scale = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1;
            let part = scaled(number, scale).ok_or_else(wrong)?;
            sum = sum.checked_add(part).ok_or_else(wrong)?;
            rest = after;
        }
        Ok(Self(sign * sum))
    }
}

/// A number, which may have a fraction, times the scale.
fn scaled(number: &str, scale: i64) -> Option<i64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut sum = whole.checked_mul(scale)?;
    let mut place = scale;
    for digit in fraction.bytes() {
        place /= 10;
        sum = sum.checked_add(place.checked_mul(i64::from(digit - b'0'))?)?;
    }
    Some(sum)
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let (unit, scale) = match nanos {
            0 => return f.write_str("0s"),
            1..1_000 => ("ns", 1),
            1_000..1_000_000 => ("µs", 1_000),
            1_000_000..1_000_000_000 => ("ms", 1_000_000),
            _ => {
                let seconds = nanos / 1_000_000_000;
                let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
                if hours > 0 {
                    write!(f, "{hours}h")?;
                }
                if hours > 0 || minutes > 0 {
                    write!(f, "{minutes}m")?;
                }
                return write!(f, "{}s", decimal(nanos % 60_000_000_000, 1_000_000_000));
            }
        };
        write!(f, "{}{unit}", decimal(nanos, scale))
    }
}

/// A number in units of `scale`, with the fraction that it needs.
fn decimal(number: u64, scale: u64) -> String {
    let (whole, fraction) = (number / scale, number % scale);
    if fraction == 0 {
        return whole.to_string();
    }
    let digits = scale.ilog10() as usize;
    format!("{whole}.{fraction:0digits$}").trim_end_matches('0').to_owned()
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The words that Go takes for truth values.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

/// An amount of bytes, of which only this matters: whether there is any. Kept as it was written.
pub fn amount(text: &str) -> Result<f64, String> {
    const SUFFIXES: [&str; 16] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "n", "u", "m", "k", "M", "G", "T", "P", "E", ""];
    let number = SUFFIXES.iter().find_map(|suffix| text.strip_suffix(suffix)).unwrap_or(text);
    number.parse().map_err(|_| format!("{text:?} is not an amount of bytes such as 512 or 64Ki"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_as_in_go() {
        for (text, nanos, written) in [
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("15m", 900_000_000_000, "15m0s"),
            ("24h0m0s", 86_400_000_000_000, "24h0m0s"),
            ("1h15m30.918s", 4_530_918_000_000, "1h15m30.918s"),
            ("90s", 90_000_000_000, "1m30s"),
            (".5s", 500_000_000, "500ms"),
            ("1.5s", 1_500_000_000, "1.5s"),
            ("10us", 10_000, "10µs"),
            ("7ns", 7, "7ns"),
            ("-1h", -3_600_000_000_000, "-1h0m0s"),
            ("+3s", 3_000_000_000, "3s"),
        ] {
            let duration: GoDuration = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((duration.0, duration.to_string().as_str()), (nanos, written), "{text}");
            assert_eq!(written.parse(), Ok(duration), "{written} read back");
        }
        for text in ["", "-", "3", "s", "1.2.3s", ".s", "1x", "1h 2m", "999999999h", "one"] {
            assert!(text.parse::<GoDuration>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn truth_values_have_gos_words() {
        for (text, wanted) in [("1", true), ("T", true), ("TRUE", true), ("true", true), ("0", false), ("f", false), ("False", false)] {
            assert_eq!(boolean(text), Ok(wanted));
        }
        assert!(boolean("yes").is_err() && boolean("").is_err());
    }

    #[test]
    fn amounts_of_bytes() {
        assert_eq!(amount("0"), Ok(0.0));
        assert!(amount("64Ki").is_ok_and(|n| n > 0.0) && amount("1k").is_ok_and(|n| n > 0.0));
        assert!(amount("Ki").is_err() && amount("1K").is_err() && amount("many").is_err());
    }
}
