//! Packing against another reader of the same formats, and what is refused.

use super::{PackError, PackKind, PackedMatrix};
use crate::kernels::{Arena, WeightFormat};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

/// The formats, candle's names of them, and how far a weight of noise within ±1 may be off: nothing, or the rounding of
/// the K formats' scales to half precision.
const FORMATS: [(WeightFormat, GgmlDType, f32); 8] = [
    (WeightFormat::F32, GgmlDType::F32, 0.0),
    (WeightFormat::F16, GgmlDType::F16, 0.0),
    (WeightFormat::Bf16, GgmlDType::BF16, 0.0),
    (WeightFormat::Q4_0, GgmlDType::Q4_0, 0.0),
    (WeightFormat::Q4_1, GgmlDType::Q4_1, 0.0),
    (WeightFormat::Q8_0, GgmlDType::Q8_0, 0.0),
    (WeightFormat::Q4K, GgmlDType::Q4K, 0.0015),
    (WeightFormat::Q6K, GgmlDType::Q6K, 0.0005),
];

fn noise(count: usize) -> Vec<f32> {
    let next = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some(*state)
    };
    let mut state = 1;
    (0..count).map(|_| next(&mut state).unwrap() as f32 / (1u64 << 31) as f32 - 1.0).collect()
}

#[test]
fn every_format_unpacks_to_what_candle_reads_in_the_order_that_was_asked_for() {
    let (rows, cols) = (37, 512);
    let values = Tensor::from_vec(noise(rows * cols), (rows, cols), &Device::Cpu).unwrap();
    for (format, dtype, bound) in FORMATS {
        let tensor = QTensor::quantize(&values, dtype).unwrap();
        let want = tensor.dequantize(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        let bytes = tensor.data().unwrap();
        let mut arena = Arena::new(PackedMatrix::bytes_for(PackKind::of(format), rows, cols));
        let backwards = |row: usize| rows - 1 - row;
        let packed = PackedMatrix::pack_in(Some(&mut arena), format, rows, cols, &bytes, &backwards).unwrap();
        drop(arena);
        let mut got = vec![0.0; cols];
        for row in 0..rows {
            packed.unpack_row(row, &mut got);
            for (col, (got, want)) in got.iter().zip(&want[backwards(row)]).enumerate() {
                assert!((got - want).abs() <= bound, "{format:?} {row} {col}: {got} for {want}");
            }
        }
    }
}

#[test]
fn packed_weights_take_no_more_memory_than_said() {
    let per_32_by_16 = [
        (PackKind::Q4, 320),
        (PackKind::Q6, 576),
        (PackKind::Q8, 544),
        (PackKind::F16, 1024),
        (PackKind::Bf16, 1024),
        (PackKind::F32, 2048),
    ];
    for (kind, bytes) in per_32_by_16 {
        let matrix = PackedMatrix::from_f32(kind, 48, 128, &noise(48 * 128));
        assert_eq!(matrix.bytes_len(), 3 * 4 * bytes, "{kind:?}");
        assert_eq!(PackedMatrix::bytes_for(kind, 48, 128), matrix.bytes_len());
    }
}

#[test]
fn numbers_survive_packing_as_far_as_their_bits_reach() {
    let values = noise(20 * 70);
    let steps =
        [(PackKind::Q4, 2.0 / 29.0), (PackKind::Q6, 1.0 / 61.0), (PackKind::Q8, 1.0 / 253.0), (PackKind::F32, 0.0)];
    for (kind, bound) in steps {
        let matrix = PackedMatrix::from_f32(kind, 20, 70, &values);
        let mut got = vec![0.0; 70];
        for (row, want) in values.chunks(70).enumerate() {
            matrix.unpack_row(row, &mut got);
            assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() <= bound), "{kind:?} row {row}");
        }
    }
}

#[test]
fn bytes_that_are_not_the_matrix_are_refused() {
    let same = |row| row;
    for (format, _, _) in FORMATS {
        let (rows, cols) = (3, 256);
        let needed = rows * cols / format.block_weights() * format.block_bytes();
        let bytes = vec![0xff; needed + 1];
        for given in [0, needed - 1, needed + 1] {
            let refused = PackedMatrix::pack(format, rows, cols, &bytes[..given], &same).err();
            assert_eq!(refused, Some(PackError::Bytes { needed, given }), "{format:?}");
        }
        for (rows, cols) in [(0, 256), (3, 0), (usize::MAX, 256), (3, usize::MAX - 255)] {
            let refused = PackedMatrix::pack(format, rows, cols, &bytes, &same).err();
            assert!(matches!(refused, Some(PackError::Shape { .. })), "{format:?}");
        }
        let refused = PackedMatrix::pack(format, rows, cols, &bytes[..needed], &|row| row + 1).err();
        assert_eq!(refused, Some(PackError::Row { row: 3, rows }));
        // Any bits are weights, NaN among them.
        let packed = PackedMatrix::pack(format, rows, cols, &bytes[..needed], &same).unwrap();
        packed.unpack_row(2, &mut vec![0.0; cols]);
    }
    let refused = PackedMatrix::pack(WeightFormat::Q4_1, 3, 33, &[0; 60], &same).err();
    assert_eq!(refused, Some(PackError::Shape { rows: 3, cols: 33, block: 32 }));
}
