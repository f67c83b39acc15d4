//! Ranges of addresses, as the API and nft write them.

use std::net::IpAddr;

/// First and last address, as numbers, after the length of the family's addresses.
pub(super) type Range = (u32, u128, u128);

/// `10.96.0.0/16` or `10.96.0.0-10.97.255.255`.
pub(super) fn read(text: &str) -> Option<Range> {
    if let Some((first, last)) = text.split_once('-') {
        let ((bits, first), (_, last)) = (number(first)?, number(last)?);
        return Some((bits, first, last));
    }
    let (address, length) = text.split_once('/')?;
    let ((bits, first), length) = (number(address)?, length.parse::<u32>().ok()?);
    let rest = 1_u128.checked_shl(bits.checked_sub(length)?).map_or(u128::MAX, |size| size - 1);
    Some((bits, first & !rest, first | rest))
}

fn number(text: &str) -> Option<(u32, u128)> {
    Some(match text.parse().ok()? {
        IpAddr::V4(ip) => (32, u32::from(ip).into()),
        IpAddr::V6(ip) => (128, ip.into()),
    })
}

/// The same addresses in the fewest ranges, in order: nft joins those that touch.
pub(super) fn joined(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut joined: Vec<Range> = Vec::new();
    for (bits, first, last) in ranges {
        match joined.last_mut() {
            Some((same, _, end)) if *same == bits && first <= end.saturating_add(1) => *end = last.max(*end),
            _ => joined.push((bits, first, last)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str]) -> Vec<Range> {
        joined(texts.iter().map(|text| read(text).expect("a range")).collect())
    }

    #[test]
    fn ranges_that_touch_are_one() {
        assert_eq!(of(&["10.97.0.0/16", "10.96.0.0/16"]), of(&["10.96.0.0/15"]));
        assert_eq!(of(&["10.97.0.0/16", "10.96.0.0/16"]), of(&["10.96.0.0-10.97.255.255"]));
        assert_ne!(of(&["10.98.0.0/16", "10.96.0.0/16"]), of(&["10.96.0.0/15"]));
        assert_eq!(of(&["fd00:10:96::/96", "0.0.0.0/0"]).len(), 2);
        assert_eq!(read("10.96.0.0/33").or(read("x/8")), None);
    }
}
