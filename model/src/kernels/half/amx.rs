//! Products in tiles of 16 rows × 64 bytes (Intel AMX). Knows how a piece is covered by tiles; refuses to know who asks.
//!
//! Four tiles hold sums; the way they lie over the output is chosen so that each load serves as many products as possible: 2 × 2,
//! or 4 × 1 and 1 × 4 along an odd panel and an odd strip of rows. The whole inner loop is one block of assembly, for the
//! compiler knows nothing of the tiles.

use super::operand::{PANEL, STEP};
use super::piece::{Piece, Stretch, Target};
use half::bf16;
use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

/// Rows of a tile.
const TILE_ROWS: usize = 16;
/// Bytes of a row of a tile.
const TILE_BYTES: usize = 64;

/// Whether the processor has tiles of bf16, and the system lets this process use them; it is asked once.
pub(in crate::kernels) fn is_available() -> bool {
    static READY: OnceLock<bool> = OnceLock::new();
    *READY.get_or_init(|| super::avx512::is_available() && has_tiles() && is_permitted())
}

/// Intel SDM, volume 2, CPUID: leaf 7 EDX bit 22 AMX-BF16, bit 24 AMX-TILE; leaf 1 ECX bit 27 OSXSAVE; XCR0 bits 17 and 18 the state
/// of the tiles.
fn has_tiles() -> bool {
    #[target_feature(enable = "xsave")]
    fn enabled() -> u64 {
        // SAFETY: only called where the system has enabled XSAVE; register 0 is always there then.
        unsafe { _xgetbv(0) }
    }
    if __cpuid(0).eax < 7 || __cpuid(1).ecx >> 27 & 1 == 0 {
        return false;
    }
    let found = __cpuid_count(7, 0).edx;
    // SAFETY: OSXSAVE says that XGETBV may be executed.
    found >> 22 & 1 == 1 && found >> 24 & 1 == 1 && unsafe { enabled() } >> 17 & 0b11 == 0b11
}

/// Asks Linux for the state of the tiles, for the whole process (Documentation/arch/x86/xstate.rst).
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_PRCTL: u64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XTILEDATA: u64 = 18;
    let refused: u64;
    // SAFETY: arch_prctl(2) with this code reads no memory; it changes only what this process may use.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => refused,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    refused == 0
}

/// Elsewhere nobody knows how to ask.
#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// How large the tiles are: 0 to 3 sums, 4 and 5 of the left side, 6 and 7 of the right side (Intel SDM, volume 1, 18.2).
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shape {
    /// Sums of `rows × columns`, each up to 16.
    #[expect(clippy::cast_possible_truncation, reason = "at most 16 and 64")]
    const fn new(rows: usize, columns: usize) -> Self {
        let (rows, bytes) = (rows as u8, (columns * size_of::<f32>()) as u16);
        let mut shape = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut tile = 0;
        while tile < 8 {
            let is_left = tile == 4 || tile == 5;
            shape.row_bytes[tile] = if is_left { TILE_BYTES as u16 } else { bytes };
            shape.rows[tile] = if tile < 6 { rows } else { TILE_ROWS as u8 };
            tile += 1;
        }
        shape
    }

    /// Makes it the shape of this thread's tiles, which become zero.
    ///
    /// # Safety
    /// [`is_available`].
    unsafe fn load(&self) {
        // SAFETY: reads the 64 bytes of the shape, which is a valid one.
        unsafe {
            asm!("ldtilecfg [{0}]", in(reg) self, out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack, readonly, preserves_flags));
        }
    }
}

/// Gives the tiles back, so that the system need not save them.
///
/// # Safety
/// [`is_available`].
unsafe fn release() {
    // SAFETY: touches the tiles alone.
    unsafe {
        asm!("tilerelease", out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
            out("tmm6") _, out("tmm7") _, options(nostack, nomem, preserves_flags));
    }
}

/// What the inner loop reads from memory.
#[repr(C)]
struct Sums {
    /// Where the sums begin and end; those of tiles that are not used are not read.
    at: [*mut f32; 4],
    /// Bytes from row to row of it.
    stride: usize,
    /// Whether the sums begin with what is there, or with zeros.
    add: usize,
    first: *const Stretch,
    end: *const Stretch,
}

/// A function that computes some tiles over all stretches: `$load` and `$store` name the tiles of sums, `$begin` finds the addresses of a
/// stretch, `$step` multiplies 32 numbers of the inner side and goes on.
macro_rules! inner_loop {
    ($(#[$about:meta])* $name:ident, [$($load:literal),*], [$($store:literal),*], [$($begin:literal),*], [$($step:literal),*]) => {
        $(#[$about])*
        ///
        /// # Safety
        /// [`is_available`], a shape is loaded, and the sums and stretches have that many rows and panels.
        #[inline(always)]
        unsafe fn $name(sums: &Sums) {
            // SAFETY: reads the stretches, and reads and writes the sums, by the caller.
            unsafe {
                asm!(
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    "mov {s}, [{sums} + 32]",
                    "cmp qword ptr [{sums} + 40], 0",
                    "je 2f",
                    $($load,)*
                    "2:",
                    "mov {s}, 64",
                    "mov {seg}, [{sums} + 48]",
                    "3:",
                    "mov {a0}, [{seg}]",
                    "mov {as}, [{seg} + 8]",
                    "mov {b0}, [{seg} + 16]",
                    "mov {b1}, [{seg} + 24]",
                    "mov {n}, [{seg} + 32]",
                    $($begin,)*
                    "4:",
                    $($step,)*
                    "dec {n}",
                    "jnz 4b",
                    "add {seg}, 48",
                    "cmp {seg}, [{sums} + 56]",
                    "jb 3b",
                    "mov {s}, [{sums} + 32]",
                    $($store,)*
                    sums = in(reg) sums, s = out(reg) _, seg = out(reg) _, a0 = out(reg) _, a1 = out(reg) _, as = out(reg) _,
                    b0 = out(reg) _, b1 = out(reg) _, n = out(reg) _, x = out(reg) _, y = out(reg) _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
                    out("tmm7") _, options(nostack),
                );
            }
        }
    };
}

inner_loop! {
    /// Two strips of rows by two panels. The panels of two steps ahead are asked for, line by line: few loads of tiles are under way at
    /// a time, and each would wait for the second cache.
    two_by_two,
    [
        "mov {x}, [{sums}]", "tileloadd tmm0, [{x} + {s}]", "mov {x}, [{sums} + 8]", "tileloadd tmm1, [{x} + {s}]",
        "mov {x}, [{sums} + 16]", "tileloadd tmm2, [{x} + {s}]", "mov {x}, [{sums} + 24]", "tileloadd tmm3, [{x} + {s}]"
    ],
    [
        "mov {x}, [{sums}]", "tilestored [{x} + {s}], tmm0", "mov {x}, [{sums} + 8]", "tilestored [{x} + {s}], tmm1",
        "mov {x}, [{sums} + 16]", "tilestored [{x} + {s}], tmm2", "mov {x}, [{sums} + 24]", "tilestored [{x} + {s}], tmm3"
    ],
    ["mov {a1}, {as}", "shl {a1}, 4", "add {a1}, {a0}", "add {b1}, {b0}", "xor {x:e}, {x:e}", "xor {y:e}, {y:e}"],
    [
        "tileloadd tmm6, [{b0} + {s}]", "tileloadd tmm4, [{a0} + {as}]", "tdpbf16ps tmm0, tmm4, tmm6",
        ".irp line, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "prefetcht0 [{b0} + 2048 + 64*\\line]",
        ".endr",
        "tileloadd tmm7, [{b1} + {s}]", "tdpbf16ps tmm1, tmm4, tmm7",
        ".irp line, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "prefetcht0 [{b1} + 2048 + 64*\\line]",
        ".endr",
        "tileloadd tmm5, [{a1} + {as}]", "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
        "add {a0}, 64", "add {a1}, 64", "add {b0}, 1024", "add {b1}, 1024"
    ]
}

inner_loop! {
    /// Four strips of rows by one panel.
    four_by_one,
    [
        "mov {x}, [{sums}]", "tileloadd tmm0, [{x} + {s}]", "mov {x}, [{sums} + 8]", "tileloadd tmm1, [{x} + {s}]",
        "mov {x}, [{sums} + 16]", "tileloadd tmm2, [{x} + {s}]", "mov {x}, [{sums} + 24]", "tileloadd tmm3, [{x} + {s}]"
    ],
    [
        "mov {x}, [{sums}]", "tilestored [{x} + {s}], tmm0", "mov {x}, [{sums} + 8]", "tilestored [{x} + {s}], tmm1",
        "mov {x}, [{sums} + 16]", "tilestored [{x} + {s}], tmm2", "mov {x}, [{sums} + 24]", "tilestored [{x} + {s}], tmm3"
    ],
    [
        "mov {x}, {as}", "shl {x}, 4", "lea {a1}, [{a0} + {x}]", "lea {b1}, [{a0} + 2*{x}]", "lea {y}, [{a1} + 2*{x}]"
    ],
    [
        "tileloadd tmm6, [{b0} + {s}]",
        "tileloadd tmm4, [{a0} + {as}]", "tdpbf16ps tmm0, tmm4, tmm6", "tileloadd tmm5, [{a1} + {as}]",
        "tdpbf16ps tmm1, tmm5, tmm6", "tileloadd tmm4, [{b1} + {as}]", "tdpbf16ps tmm2, tmm4, tmm6",
        "tileloadd tmm5, [{y} + {as}]", "tdpbf16ps tmm3, tmm5, tmm6",
        "add {a0}, 64", "add {a1}, 64", "add {b1}, 64", "add {y}, 64", "add {b0}, 1024"
    ]
}

inner_loop! {
    /// One strip of rows by four panels.
    one_by_four,
    [
        "mov {x}, [{sums}]", "tileloadd tmm0, [{x} + {s}]", "mov {x}, [{sums} + 8]", "tileloadd tmm1, [{x} + {s}]",
        "mov {x}, [{sums} + 16]", "tileloadd tmm2, [{x} + {s}]", "mov {x}, [{sums} + 24]", "tileloadd tmm3, [{x} + {s}]"
    ],
    [
        "mov {x}, [{sums}]", "tilestored [{x} + {s}], tmm0", "mov {x}, [{sums} + 8]", "tilestored [{x} + {s}], tmm1",
        "mov {x}, [{sums} + 16]", "tilestored [{x} + {s}], tmm2", "mov {x}, [{sums} + 24]", "tilestored [{x} + {s}], tmm3"
    ],
    ["mov {y}, {b1}", "lea {x}, [{b0} + 2*{y}]", "add {b1}, {b0}", "add {y}, {x}", "xor {a1:e}, {a1:e}"],
    [
        "tileloadd tmm4, [{a0} + {as}]",
        "tileloadd tmm6, [{b0} + {s}]", "tdpbf16ps tmm0, tmm4, tmm6", "tileloadd tmm7, [{b1} + {s}]",
        "tdpbf16ps tmm1, tmm4, tmm7", "tileloadd tmm6, [{x} + {s}]", "tdpbf16ps tmm2, tmm4, tmm6",
        "tileloadd tmm7, [{y} + {s}]", "tdpbf16ps tmm3, tmm4, tmm7",
        "add {a0}, 64", "add {b0}, 1024", "add {b1}, 1024", "add {x}, 1024", "add {y}, 1024"
    ]
}

inner_loop! {
    /// One strip of rows by one panel.
    one_by_one,
    ["mov {x}, [{sums}]", "tileloadd tmm0, [{x} + {s}]"],
    ["mov {x}, [{sums}]", "tilestored [{x} + {s}], tmm0"],
    ["xor {a1:e}, {a1:e}", "xor {b1:e}, {b1:e}", "xor {x:e}, {x:e}", "xor {y:e}, {y:e}"],
    [
        "tileloadd tmm6, [{b0} + {s}]", "tileloadd tmm4, [{a0} + {as}]", "tdpbf16ps tmm0, tmm4, tmm6",
        "add {a0}, 64", "add {b0}, 1024"
    ]
}

/// How the four tiles of sums lie over the output: strips of rows, panels.
#[derive(Clone, Copy)]
enum Cover {
    TwoByTwo,
    FourByOne,
    OneByFour,
    OneByOne,
}

impl Cover {
    const fn sides(self) -> (usize, usize) {
        match self {
            Self::TwoByTwo => (2, 2),
            Self::FourByOne => (4, 1),
            Self::OneByFour => (1, 4),
            Self::OneByOne => (1, 1),
        }
    }

    /// # Safety
    /// As the inner loops.
    #[inline(always)]
    unsafe fn run(self, sums: &Sums) {
        // SAFETY: by the caller.
        unsafe {
            match self {
                Self::TwoByTwo => two_by_two(sums),
                Self::FourByOne => four_by_one(sums),
                Self::OneByFour => one_by_four(sums),
                Self::OneByOne => one_by_one(sums),
            }
        }
    }
}

/// Computes a piece.
///
/// # Safety
/// [`is_available`].
pub(super) unsafe fn piece(piece: &Piece) {
    let (strips, rest) = (piece.rows / TILE_ROWS, piece.rows % TILE_ROWS);
    let (panels, over) = (piece.columns / PANEL, piece.columns % PANEL);
    // SAFETY: the processor has tiles, by the caller; what is covered lies within the piece.
    unsafe {
        let grid = |shape: (usize, usize), strips: (usize, usize), panels: (usize, usize)| {
            if strips.0 < strips.1 && panels.0 < panels.1 {
                Shape::new(shape.0, shape.1).load();
                cover(piece, shape, strips, panels);
            }
        };
        grid((TILE_ROWS, PANEL), (0, strips), (0, panels));
        grid((rest, PANEL), (strips, strips + rest.min(1)), (0, panels));
        grid((TILE_ROWS, over), (0, strips), (panels, panels + over.min(1)));
        grid((rest, over), (strips, strips + rest.min(1)), (panels, panels + over.min(1)));
        release();
    }
}

/// Computes these strips and panels, whose tiles all have one shape.
///
/// # Safety
/// [`is_available`]; the shape is loaded; they lie within the piece.
unsafe fn cover(piece: &Piece, shape: (usize, usize), strips: (usize, usize), panels: (usize, usize)) {
    let (even_strips, even_panels) = ((strips.1 - strips.0) & !1, (panels.1 - panels.0) & !1);
    let (odd_strip, odd_panel) = (strips.0 + even_strips, panels.0 + even_panels);
    // SAFETY: by the caller.
    unsafe {
        for strip in (strips.0..odd_strip).step_by(2) {
            for panel in (panels.0..odd_panel).step_by(2) {
                block(piece, Cover::TwoByTwo, shape, (strip, panel));
            }
        }
        if odd_panel < panels.1 {
            let fours = (strips.1 - strips.0) / 4 * 4 + strips.0;
            (strips.0..fours).step_by(4).for_each(|strip| block(piece, Cover::FourByOne, shape, (strip, odd_panel)));
            (fours..strips.1).for_each(|strip| block(piece, Cover::OneByOne, shape, (strip, odd_panel)));
        }
        if odd_strip < strips.1 {
            let fours = even_panels / 4 * 4 + panels.0;
            (panels.0..fours).step_by(4).for_each(|panel| block(piece, Cover::OneByFour, shape, (odd_strip, panel)));
            (fours..odd_panel).for_each(|panel| block(piece, Cover::OneByOne, shape, (odd_strip, panel)));
        }
    }
}

/// Computes up to four tiles.
///
/// # Safety
/// As [`cover`].
#[inline(always)]
unsafe fn block(piece: &Piece, cover: Cover, shape: (usize, usize), (strip, panel): (usize, usize)) {
    let (row, column) = (strip * TILE_ROWS, panel * PANEL);
    let (high, wide) = cover.sides();
    let at = row * piece.stride + column;
    // SAFETY: the tiles lie within the piece, by the caller; the scratch has room for four.
    unsafe {
        let stretches = piece.stretches_at(row, panel);
        let stretches = stretches[..piece.stretches().len()].as_ptr_range();
        let sums = |start: *mut f32, stride: usize, add: bool| Sums {
            at: std::array::from_fn(|tile| {
                let tile = tile.min(high * wide - 1);
                start.wrapping_add(tile / wide * TILE_ROWS * stride + tile % wide * PANEL)
            }),
            stride: stride * size_of::<f32>(),
            add: usize::from(add),
            first: stretches.start,
            end: stretches.end,
        };
        match piece.target {
            Target::Set(out) => cover.run(&sums(out.add(at), piece.stride, false)),
            Target::Add(out) => cover.run(&sums(out.add(at), piece.stride, true)),
            Target::Half(out) => {
                let mut scratch = Scratch([0.0; 4 * TILE_ROWS * PANEL]);
                let stride = wide * PANEL;
                cover.run(&sums(scratch.0.as_mut_ptr(), stride, false));
                let (rows, columns) = ((high - 1) * TILE_ROWS + shape.0, (wide - 1) * PANEL + shape.1);
                super::avx512::round_rows((scratch.0.as_ptr(), stride), (out.add(at), piece.stride), rows, columns);
            }
        }
    }
}

/// Room for the sums of a block that are rounded.
#[repr(align(64))]
struct Scratch([f32; 4 * TILE_ROWS * PANEL]);

const _: () =
    assert!(size_of::<Stretch>() == 48 && STEP * size_of::<bf16>() == TILE_BYTES, "as the inner loop reads them");
