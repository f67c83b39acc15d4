//! The behaviours that scenarios name: an area and a number, one testable behaviour of kube-proxy each.

/// The areas, and how many behaviours each has.
const AREAS: [(&str, u32); 16] = [
    ("SVC", 18),
    ("EP", 20),
    ("TOP", 8),
    ("TP", 11),
    ("ERR", 13),
    ("NAT", 13),
    ("AFF", 10),
    ("NP", 15),
    ("LBR", 6),
    ("LOC", 5),
    ("CT", 15),
    ("SYNC", 18),
    ("HC", 13),
    ("MET", 14),
    ("API", 9),
    ("CFG", 16),
];

/// Whether there is a behaviour of this ID.
pub fn exists(id: &str) -> bool {
    AREAS.iter().any(|(area, count)| (1..=*count).any(|number| id == format!("{area}-{number:02}")))
}
