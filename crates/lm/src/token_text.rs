//! The text of single tokens, for people to read.
//!
//! Byte-level vocabularies store each byte as a letter that can be printed (GPT-2's table): `Ġ` for a space, `Ã¯` for
//! the two bytes of `ï`. SentencePiece stores a space as `▁`.

use crate::Tokenizer;

/// The stand-in letter of a space in byte-level vocabularies.
const BYTE_LEVEL_SPACE: &str = "Ġ";

impl Tokenizer {
    /// The text that a token stands for. Bytes that are only part of a character are written `<0xC3>`; special tokens
    /// as they are stored. `None` for an id outside of the vocabulary.
    ///
    /// ```
    /// use mope_lm::Tokenizer;
    /// use mope_lm::load::Checkpoint;
    ///
    /// let checkpoint = Checkpoint::open("tests/fixtures/pico/llama".as_ref())?;
    /// let tokenizer = Tokenizer::load(&checkpoint)?;
    /// let ids = tokenizer.encode("a b", false)?;
    /// let texts: Vec<String> = ids.iter().filter_map(|id| tokenizer.token_text(*id)).collect();
    /// assert_eq!(texts, ["a", " ", "b"]);
    /// # Ok::<(), mope_lm::Error>(())
    /// ```
    pub fn token_text(&self, id: u32) -> Option<String> {
        let piece = self.piece(id)?;
        let space = self.id(BYTE_LEVEL_SPACE);
        let byte_level =
            space.is_some_and(|space| self.decode(&[space]).is_ok_and(|text| text == " "));
        if !byte_level {
            return Some(piece.replace('▁', " "));
        }
        let bytes: Option<Vec<u8>> = piece.chars().map(byte_of).collect();
        Some(bytes.map_or(piece, |bytes| readable(&bytes)))
    }
}

/// Bytes that stand for themselves in GPT-2's table.
fn printable(byte: &u8) -> bool {
    matches!(byte, 33..=126 | 161..=172 | 174..=255)
}

/// The letter of GPT-2's table that a byte is written as.
pub(crate) fn letter_of(byte: u8) -> char {
    let before = (0..byte).filter(|byte| !printable(byte)).count() as u32;
    match printable(&byte) {
        true => char::from(byte),
        false => char::from_u32(256 + before).unwrap_or_default(),
    }
}

/// The byte that a letter of GPT-2's table stands for: printable ones for themselves, the others by letters from
/// U+0100 on, in their order.
fn byte_of(letter: char) -> Option<u8> {
    match u32::from(letter) {
        code @ 0..=255 => u8::try_from(code).ok().filter(printable),
        code => {
            let mut others = (0..=255u8).filter(|byte| !printable(byte));
            others.nth(code as usize - 256)
        }
    }
}

/// UTF-8, with what is no character byte by byte.
fn readable(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        let rest = chunk.invalid().iter();
        text.extend(rest.map(|byte| format!("<0x{byte:02X}>")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_in_letters_are_the_bytes_of_gpt2s_table() {
        let bytes = |piece: &str| piece.chars().map(byte_of).collect::<Option<Vec<u8>>>();
        assert_eq!(bytes("Ġb"), Some(b" b".to_vec()));
        assert_eq!(bytes("Ċ"), Some(b"\n".to_vec()));
        assert_eq!(bytes("naÃ¯ve"), Some("naïve".as_bytes().to_vec()));
        // The first and the last of the letters that stand for bytes that cannot be printed.
        assert_eq!(bytes("ĀŃ"), Some(vec![0, 173]));
        assert_eq!(bytes("ń"), None);
        assert_eq!(bytes(" "), None);
    }

    #[test]
    fn part_of_a_character_is_written_byte_by_byte() {
        assert_eq!(readable("naïve".as_bytes()), "naïve");
        assert_eq!(readable(b" \xC3"), " <0xC3>");
        assert_eq!(readable(b"\xAFve"), "<0xAF>ve");
    }
}
