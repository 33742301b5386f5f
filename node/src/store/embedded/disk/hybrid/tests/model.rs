//! Random writes against a map: every snapshot stays exactly what it was.

use super::*;

/// A small generator of numbers that are the same for a seed.
pub(super) struct Random(pub u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// Keys of all lengths, many with a common head, and with zeros, which pad heads.
    fn key(&mut self) -> Bytes {
        let heads: [&[u8]; 6] =
            [b"", b"\x10aaaaaaaam", b"\x10aaaaaaaax", b"\x10bbbbbbbbm", b"\0\0", b"\x14v"];
        let mut key = heads[self.below(6) as usize].to_vec();
        let (tail, letters) = match self.below(3) {
            0 => (8, 2),
            1 => (self.below(12), 3),
            _ => (1 + self.below(3), 256),
        };
        key.extend((0..tail).map(|_| (self.below(letters)) as u8));
        if key.is_empty() || key[0] == 0xff {
            key.insert(0, b'k');
        }
        key.into()
    }

    fn batch(&mut self) -> Batch {
        let mut rows = BTreeMap::new();
        for _ in 0..1 + self.below(12) {
            let value = match self.below(4) {
                0 => None,
                _ => Some(Bytes::from(vec![self.below(256) as u8; self.below(60) as usize]).into()),
            };
            rows.insert(self.key(), value);
        }
        Batch { rows: rows.into_iter().collect() }
    }

    fn range(&mut self) -> KeyRange {
        let (one, other) = (self.key(), self.key());
        KeyRange { start: one.clone().min(other.clone()), end: one.max(other) }
    }
}

#[test]
fn every_snapshot_stays_what_it_was_while_memtables_are_filled_sealed_and_ingested() {
    let mut ingestions = 0;
    for seed in 1..=6 {
        let folder = tempfile::tempdir().unwrap();
        make_rows(folder.path());
        let mut options = options(Probe::default());
        // Few memtables, with many values of a key each; or many.
        options.plain.memtable_bytes = if seed % 2 == 0 { 80_000 } else { MEMTABLE_BYTES };
        let counters = Arc::clone(&options.counters);
        let disk = open(folder.path(), &CrashDir::default(), options).unwrap();
        let mut random = Random(seed);
        let mut model = Rows::new();
        let mut held: Vec<(Arc<dyn DiskSnapshot>, Rows)> = vec![(disk.snapshot(), Rows::new())];
        for number in 0..300 {
            let batch = random.batch();
            apply(&mut model, &batch);
            let snapshot = disk.write(batch).unwrap();
            agree(&*snapshot, &model, &mut random);
            held.push((snapshot, model.clone()));
            if random.below(3) == 0 {
                for (snapshot, model) in &held {
                    agree(&**snapshot, model, &mut random);
                }
            }
            // Those that are held keep memtables alive, whose number is bounded.
            while held.len() > 8 {
                held.remove(random.below(held.len() as u64) as usize);
            }
            if number % 40 == 0 {
                held.clear();
                held.push((disk.snapshot(), model.clone()));
            }
        }
        for (snapshot, model) in &held {
            agree(&**snapshot, model, &mut random);
            assert_eq!(rows(&**snapshot, &all(), Order::Forward).len(), model.len());
        }
        ingestions += counters.read().ingestions;
    }
    assert!(ingestions > 30, "only {ingestions} memtables were ingested");
}

fn agree(snapshot: &dyn DiskSnapshot, model: &Rows, random: &mut Random) {
    let key = random.key();
    assert_eq!(snapshot.get(&key).unwrap(), model.get(&key).cloned());
    if let Some((key, value)) = model.iter().nth(random.below(1 + model.len() as u64) as usize) {
        assert_eq!(snapshot.get(key).unwrap().as_ref(), Some(value));
    }
    let range = random.range();
    let mut expected: Vec<(Bytes, Bytes)> = match range.is_empty() {
        true => Vec::new(),
        false => {
            let found = model.range(range.start.clone()..range.end.clone());
            found.map(|(key, value)| (key.clone(), value.clone())).collect()
        }
    };
    assert_eq!(rows(snapshot, &range, Order::Forward), expected, "{range:?}");
    expected.reverse();
    assert_eq!(rows(snapshot, &range, Order::Reverse), expected, "{range:?}");
}

/// A bot's inbox: thousands of rows with one head, which must not be moved with every new one.
#[test]
fn a_head_with_many_rows_keeps_their_order() {
    for ascending in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        make_rows(folder.path());
        let mut options = options(Probe::default());
        options.plain.memtable_bytes = 64 << 20;
        options.segment_bytes = 4 << 20;
        let disk = open(folder.path(), &CrashDir::default(), options).unwrap();
        let mut random = Random(7);
        let mut model = Rows::new();
        for number in 0..40_u64 {
            let rows = (0..100_u64).map(|row| {
                let id = if ascending { number * 100 + row } else { random.below(1 << 40) };
                let key = [b"\x10aaaaaaaam", &id.to_be_bytes()[..]].concat();
                (Bytes::from(key), Some(Bytes::from(number.to_string()).into()))
            });
            let batch = Batch { rows: rows.collect::<BTreeMap<_, _>>().into_iter().collect() };
            apply(&mut model, &batch);
            disk.write(batch).unwrap();
        }
        let snapshot = disk.snapshot();
        let mut expected: Vec<(Bytes, Bytes)> = model.clone().into_iter().collect();
        assert_eq!(rows(&*snapshot, &all(), Order::Forward), expected);
        expected.reverse();
        assert_eq!(rows(&*snapshot, &all(), Order::Reverse), expected);
        for (key, value) in &model {
            assert_eq!(snapshot.get(key).unwrap().as_ref(), Some(value));
        }
    }
}

/// Values that no snapshot can see are let go, so a row that is written all the time stays cheap.
#[test]
fn values_between_snapshots_are_let_go() {
    use crate::store::embedded::disk::hybrid::slots::{Place, Slots};
    let record = |number: u32| {
        let batch = batch(vec![("k".into(), Some(number.to_string()))]);
        Bytes::from(crate::store::embedded::disk::hybrid::record::encode(&batch, 1).unwrap())
    };
    let records: Vec<Bytes> = (0..100).map(record).collect();
    let mut slots = Slots::default();
    for number in 0..100 {
        // Snapshots at 10 and 50 are held, and the one before each record.
        let is_seen = |from: u32, below: u32| [10, 50].iter().any(|at| from <= *at && *at < below);
        let place = Place { record: number, offset: 24 };
        slots.upsert(b"k", place, &records, is_seen);
    }
    let (slot, _) = slots.at(slots.start()).unwrap();
    let seen = |record| slot.seen_at(record).map(|place| place.record);
    assert_eq!([seen(10), seen(50), seen(98), seen(99)], [Some(10), Some(50), Some(98), Some(99)]);
    assert_eq!(slot.kept(), 4);
}
