//! The little of DER (X.690) that is written by hand.

/// A tag, a length and the content, which has at most 65,535 bytes.
pub(crate) fn encode(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len())
        .expect("callers bound it")
        .to_be_bytes();
    let mut encoded = match (high, low) {
        (0, 0..0x80) => vec![tag, low],
        (0, _) => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    encoded.extend_from_slice(content);
    encoded
}
