//! GGUF block formats against the `gguf` package.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{expected, fixture};
use mope_lm::load::dequant::Format;
use mope_lm::load::gguf::Header;
use mope_lm::load::mapped::Mapped;

#[test]
fn every_block_format_decodes_as_the_reference_does() {
    let file = Mapped::open(&fixture("formats.gguf")).unwrap();
    let header = Header::parse(&file).unwrap();
    for format in Format::ALL {
        let name = format!("{format:?}");
        let tensor = &header.tensors[&name];
        assert_eq!(
            (tensor.format, tensor.shape.as_slice()),
            (format, &[2, 512][..])
        );
        common::close(
            &name,
            &file.read(&name, tensor).unwrap(),
            &expected("formats.safetensors", &name),
            1e-6,
        );
    }
}

#[test]
fn floats_of_eight_bits_are_those_of_torch() {
    let bits: Vec<u8> = (0..=255).collect();
    let mut got = vec![0.0; 256];
    Format::F8_E4M3.decode(&bits, &mut got);
    for (bits, (got, expected)) in got
        .iter()
        .zip(expected("formats.safetensors", "F8_E4M3"))
        .enumerate()
    {
        assert!(
            *got == expected || (got.is_nan() && expected.is_nan()),
            "{bits}: {got} {expected}"
        );
    }
}
