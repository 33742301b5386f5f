//! Goal: no input that fuzzing ever found, and no example of the protocol, breaks a parser again.
//!
//! Method: every file of `fuzz/corpus/TARGET` and every example of `docs/protocol.md`, whole, cut
//! short and with single bits turned, runs through its target.

use std::fs;
use std::path::PathBuf;

use chatring_fuzz::TARGETS;

/// Bytes of an example that are cut at and turned.
const MUTATED_BYTES_MAX: usize = 512;

#[test]
fn the_kept_corpus_breaks_nothing() {
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in TARGETS {
        let folder = corpus.join(target.name);
        let mut files = 0;
        for entry in fs::read_dir(&folder).expect("each target has a folder of inputs") {
            let path = entry.expect("the folder can be read").path();
            (target.run)(&fs::read(&path).expect("the input can be read"));
            files += 1;
        }
        assert!(files > 0, "no input for {}", target.name);
    }
    let folders = fs::read_dir(&corpus).expect("there is a corpus").count();
    assert_eq!(folders, TARGETS.len(), "a folder belongs to no target");
}

#[test]
fn the_examples_of_the_protocol_break_nothing_however_they_are_cut_or_turned() {
    let mut examples = 0;
    for (speaker, form, bytes) in protocol_examples() {
        let name = format!("{speaker}_{form}");
        let target = chatring_fuzz::target(&name).expect("both speak both forms");
        (target.run)(&bytes);
        for at in 0..bytes.len().min(MUTATED_BYTES_MAX) {
            (target.run)(&bytes[..at]);
            let mut turned = bytes.clone();
            for bit in 0..8 {
                turned[at] = bytes[at] ^ (1 << bit);
                (target.run)(&turned);
            }
        }
        examples += 1;
    }
    assert!(examples >= 36, "only {examples} examples were found");
}

/// Who says it, in which form, and the bytes.
fn protocol_examples() -> Vec<(String, &'static str, Vec<u8>)> {
    let document = include_str!("../../docs/protocol.md");
    let mut examples = Vec::new();
    let mut speaker = String::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if let Some(who) = info.strip_prefix("hex ") {
            who.clone_into(&mut speaker);
            let bytes = body
                .iter()
                .flat_map(|line| line.split('#').next().unwrap_or("").split_whitespace())
                .map(|byte| u8::from_str_radix(byte, 16).expect("two hexadecimal digits"));
            examples.push((speaker.clone(), "binary", bytes.collect()));
        } else if info == "json" {
            examples.push((speaker.clone(), "json", body.join("\n").into_bytes()));
        }
    }
    examples
}
