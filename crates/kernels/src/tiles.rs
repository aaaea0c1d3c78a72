//! Matrix products on tiles (AMX): registers of sixteen rows of 64 bytes, and instructions that multiply two of them.
//!
//! A tile of the left operand holds sixteen lines along k as they lie in memory, 32 bf16 of each; one of the right holds
//! the same k as sixteen units of two, of sixteen lines side by side, as strips are packed. `tdpbf16ps` adds to each of
//! 256 sums what 32 neighbours of k give: the even ones in one chain from zero, the odd ones in another, then both
//! (Intel, "Instruction Set Extensions Programming Reference", TDPBF16PS). Numbers below the normal ones count as zero.
//!
//! The loops are assembly, since the language has no stable intrinsics for tiles, and no tile outlives one of them.

/// Lines of a tile, and units of 32 bits in each.
#[cfg(target_arch = "x86_64")]
pub(crate) const SIDE: usize = 16;

/// Whether the machine has tiles of bf16 and of bytes, and lets this process use them.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn are_usable() -> bool {
    false
}

/// A memory that begins at a cache line. Tiles whose lines cross two of them load a third as fast.
#[cfg(target_arch = "x86_64")]
#[repr(C, align(64))]
pub(crate) struct Aligned<T>(pub(crate) T);

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Left, Shape, Tiles, are_usable};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::SIDE;
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    use std::sync::OnceLock;

    /// Whether the machine has tiles of bf16 and of bytes, and lets this process use them.
    pub(crate) fn are_usable() -> bool {
        static ARE: OnceLock<bool> = OnceLock::new();
        *ARE.get_or_init(|| {
            let has_vectors = is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vnni");
            has_vectors && has_instructions() && is_permitted()
        })
    }

    /// Tiles, of bf16 and of bytes.
    fn has_instructions() -> bool {
        const WANTED: u32 = 1 << 24 | 1 << 22 | 1 << 25;
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & WANTED == WANTED
    }

    /// Asks Linux, once for all threads: it keeps room for these registers only in processes that say so.
    #[cfg(target_os = "linux")]
    fn is_permitted() -> bool {
        const ARCH_PRCTL: i64 = 158;
        const REQUEST_PERMISSION: i64 = 0x1023;
        const TILE_DATA: i64 = 18;
        let mut result = ARCH_PRCTL;
        // SAFETY: the call changes what the process may do, and no memory of it.
        unsafe {
            asm!(
                "syscall",
                inout("rax") result,
                in("rdi") REQUEST_PERMISSION,
                in("rsi") TILE_DATA,
                out("rcx") _,
                out("r11") _,
                options(nostack)
            );
        }
        result == 0
    }

    #[cfg(not(target_os = "linux"))]
    fn is_permitted() -> bool {
        false
    }

    /// How large each register is: palette, row to start from; bytes of a line; lines.
    #[repr(C, align(64))]
    pub(crate) struct Shape {
        palette: u8,
        start: u8,
        reserved: [u8; 14],
        bytes: [u16; 16],
        lines: [u8; 16],
    }

    impl Shape {
        /// Whole tiles.
        pub(crate) const WHOLE: Self = Self::new(64, 16);
        /// Left tiles (the fifth and sixth register) of 32 bytes of k, right ones (the last two) as long.
        pub(crate) const BLOCKS: Self = Self::new(32, 8);

        const fn new(left_bytes: u16, right_lines: u8) -> Self {
            Self {
                palette: 1,
                start: 0,
                reserved: [0; 14],
                bytes: [64, 64, 64, 64, left_bytes, left_bytes, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
                lines: [16, 16, 16, 16, 16, 16, right_lines, right_lines, 0, 0, 0, 0, 0, 0, 0, 0],
            }
        }
    }

    /// The tile registers of this thread, ready for use; given back when it is dropped, so that nobody has to keep them. One
    /// at a time: while it lives, no other piece of parallel work may run on this thread.
    pub(crate) struct Tiles {
        /// What one thread has configured no other has.
        _private: std::marker::PhantomData<*const ()>,
    }

    /// Lines along k, in place or packed.
    #[derive(Clone, Copy)]
    pub(crate) struct Left {
        /// The first of 32 lines.
        pub(crate) at: *const f32,
        /// Bytes from one line to the next.
        pub(crate) stride: usize,
        /// Bytes from sixteen units of k to the next sixteen.
        pub(crate) step: usize,
    }

    impl Tiles {
        /// Panics where there are none.
        pub(crate) fn new(shape: &Shape) -> Self {
            assert!(are_usable(), "this machine has no tiles");
            // SAFETY: they are there, and the process may use them.
            unsafe {
                asm!(
                    "ldtilecfg [{}]",
                    in(reg) &raw const *shape,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack, readonly)
                );
            }
            Self { _private: std::marker::PhantomData }
        }

        /// `c = a b`, or `c += a b`: 32 rows and columns, `steps` times sixteen units of k.
        ///
        /// # Safety
        /// Registers have the shape [`Shape::WHOLE`]. Left must hold `steps` steps of 32 lines, each of `right` as many of
        /// sixteen units of sixteen columns side by side; `c` must hold 32 rows, `stride` bytes apart, that are this
        /// thread's own.
        #[inline(always)]
        pub(crate) unsafe fn multiply_bf16(
            &self,
            steps: usize,
            left: Left,
            [right, other]: [*const f32; 2],
            (c, stride, continues): (*mut f32, usize, bool),
        ) {
            assert!(steps > 0);
            // SAFETY: the caller vouches for all places; the tiles are configured.
            unsafe {
                asm!(
                    "test {continues}, {continues}",
                    "jnz 2f",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "jmp 3f",
                    "2:",
                    "tileloadd tmm0, [{c} + {stride}*1]",
                    "tileloadd tmm1, [{c} + {stride}*1 + 64]",
                    "tileloadd tmm2, [{lower_c} + {stride}*1]",
                    "tileloadd tmm3, [{lower_c} + {stride}*1 + 64]",
                    "3:",
                    "tileloadd tmm4, [{upper} + {apart}*1]",
                    "tileloadd tmm6, [{right} + {line}*1]",
                    "tileloadd tmm7, [{other} + {line}*1]",
                    "tileloadd tmm5, [{lower} + {apart}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {upper}, {step}",
                    "add {lower}, {step}",
                    "add {right}, 1024",
                    "add {other}, 1024",
                    "dec {steps}",
                    "jnz 3b",
                    "tilestored [{c} + {stride}*1], tmm0",
                    "tilestored [{c} + {stride}*1 + 64], tmm1",
                    "tilestored [{lower_c} + {stride}*1], tmm2",
                    "tilestored [{lower_c} + {stride}*1 + 64], tmm3",
                    continues = in(reg) usize::from(continues),
                    c = in(reg) c,
                    lower_c = in(reg) c.byte_add(SIDE * stride),
                    stride = in(reg) stride,
                    upper = inout(reg) left.at => _,
                    lower = inout(reg) left.at.wrapping_byte_add(SIDE * left.stride) => _,
                    apart = in(reg) left.stride,
                    step = in(reg) left.step,
                    right = inout(reg) right => _,
                    other = inout(reg) other => _,
                    line = in(reg) 64_usize,
                    steps = inout(reg) steps => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack)
                );
            }
        }

        /// The products of 32 lines with up to sixteen columns, which continue the sums at `c`: 32 rows of sixteen.
        /// What lies `AHEAD` bytes further in each line is fetched meanwhile.
        ///
        /// # Safety
        /// Registers have the shape [`Shape::WHOLE`]. Left must hold `steps` steps of 32 lines, `right` as many of sixteen
        /// units of sixteen columns side by side.
        #[inline(always)]
        pub(crate) unsafe fn multiply_thin_bf16<const AHEAD: usize>(
            &self,
            steps: usize,
            left: Left,
            right: *const f32,
            c: &mut [[f32; SIDE]; 2 * SIDE],
        ) {
            assert!(steps > 0);
            // SAFETY: the caller vouches for all places; the tiles are configured; prefetches may point anywhere.
            unsafe {
                asm!(
                    "tileloadd tmm0, [{c} + {width}*1]",
                    "tileloadd tmm1, [{c} + {width}*1 + 1024]",
                    "2:",
                    "lea {next}, [{upper} + {ahead}]",
                    "mov {count:e}, 8",
                    "3:",
                    "prefetcht0 [{next}]",
                    "prefetcht0 [{next} + {apart}]",
                    "lea {next}, [{next} + 2*{apart}]",
                    "prefetcht0 [{next}]",
                    "prefetcht0 [{next} + {apart}]",
                    "lea {next}, [{next} + 2*{apart}]",
                    "dec {count:e}",
                    "jnz 3b",
                    "tileloadd tmm4, [{upper} + {apart}*1]",
                    "tileloadd tmm6, [{right} + {width}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{lower} + {apart}*1]",
                    "tdpbf16ps tmm1, tmm5, tmm6",
                    "add {upper}, {step}",
                    "add {lower}, {step}",
                    "add {right}, 1024",
                    "dec {steps}",
                    "jnz 2b",
                    "tilestored [{c} + {width}*1], tmm0",
                    "tilestored [{c} + {width}*1 + 1024], tmm1",
                    ahead = const AHEAD,
                    c = in(reg) c.as_mut_ptr(),
                    width = in(reg) 64_usize,
                    upper = inout(reg) left.at => _,
                    lower = inout(reg) left.at.wrapping_byte_add(SIDE * left.stride) => _,
                    apart = in(reg) left.stride,
                    step = in(reg) left.step,
                    right = inout(reg) right => _,
                    steps = inout(reg) steps => _,
                    next = out(reg) _,
                    count = out(reg) _,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
                    options(nostack)
                );
            }
        }

        /// Sums of products of signed bytes for each of `count` blocks of 32 in k, of two left operands of sixteen lines with
        /// two right ones of sixteen columns: of the first with both, then of the second.
        ///
        /// # Safety
        /// Registers have the shape [`Shape::BLOCKS`]. Left ones must hold 32 bytes of sixteen lines for each block, right
        /// ones 32 bytes of sixteen columns, four of each side by side, at as many bytes from block to block as it says.
        #[inline(always)]
        pub(crate) unsafe fn multiply_blocks(
            &self,
            count: usize,
            [left, below]: [*const i32; 2],
            ([right, other], step): ([*const u8; 2], usize),
            sums: &mut [[[[i32; SIDE]; SIDE]; 4]],
        ) {
            assert!(count > 0 && count <= sums.len());
            // SAFETY: the caller vouches for the operands; there are as many sums.
            unsafe {
                asm!(
                    "2:",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "tileloadd tmm4, [{left} + {short}*1]",
                    "tileloadd tmm6, [{right} + {long}*1]",
                    "tdpbssd tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{other} + {long}*1]",
                    "tdpbssd tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{below} + {short}*1]",
                    "tdpbssd tmm2, tmm5, tmm6",
                    "tdpbssd tmm3, tmm5, tmm7",
                    "tilestored [{sums} + {long}*1], tmm0",
                    "tilestored [{sums} + {long}*1 + 1024], tmm1",
                    "tilestored [{sums} + {long}*1 + 2048], tmm2",
                    "tilestored [{sums} + {long}*1 + 3072], tmm3",
                    "add {left}, 512",
                    "add {below}, 512",
                    "add {right}, {step}",
                    "add {other}, {step}",
                    "add {sums}, 4096",
                    "dec {count}",
                    "jnz 2b",
                    left = inout(reg) left => _,
                    below = inout(reg) below => _,
                    short = in(reg) 32_usize,
                    right = inout(reg) right => _,
                    other = inout(reg) other => _,
                    step = in(reg) step,
                    long = in(reg) 64_usize,
                    sums = inout(reg) sums.as_mut_ptr() => _,
                    count = inout(reg) count => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack)
                );
            }
        }

        /// Sums of products of signed bytes, over `steps` times 64 in k, of two left operands with two right ones: of the
        /// first with both, then of the second.
        ///
        /// # Safety
        /// Registers have the shape [`Shape::WHOLE`]. Each left one must hold 64 bytes of sixteen lines for each step,
        /// each right one sixteen times four bytes of sixteen columns side by side.
        #[inline(always)]
        pub(crate) unsafe fn multiply_halves<const LINES: usize>(
            &self,
            steps: usize,
            [left, below]: [*const i32; 2],
            [right, other]: [&[[u8; 4 * SIDE]; LINES]; 2],
            sums: &mut [[[i32; SIDE]; SIDE]; 4],
        ) {
            assert!(steps > 0 && steps * SIDE <= LINES);
            // SAFETY: the caller vouches for left; the others are as long.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "2:",
                    "tileloadd tmm4, [{left} + {line}*1]",
                    "tileloadd tmm6, [{right} + {line}*1]",
                    "tdpbssd tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{other} + {line}*1]",
                    "tdpbssd tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{below} + {line}*1]",
                    "tdpbssd tmm2, tmm5, tmm6",
                    "tdpbssd tmm3, tmm5, tmm7",
                    "add {left}, 1024",
                    "add {below}, 1024",
                    "add {right}, 1024",
                    "add {other}, 1024",
                    "dec {steps}",
                    "jnz 2b",
                    "tilestored [{sums} + {line}*1], tmm0",
                    "tilestored [{sums} + {line}*1 + 1024], tmm1",
                    "tilestored [{sums} + {line}*1 + 2048], tmm2",
                    "tilestored [{sums} + {line}*1 + 3072], tmm3",
                    left = inout(reg) left => _,
                    below = inout(reg) below => _,
                    right = inout(reg) right.as_ptr() => _,
                    other = inout(reg) other.as_ptr() => _,
                    line = in(reg) 64_usize,
                    sums = in(reg) sums.as_mut_ptr(),
                    steps = inout(reg) steps => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack)
                );
            }
        }
    }

    impl Drop for Tiles {
        fn drop(&mut self) {
            // SAFETY: they are there.
            unsafe {
                asm!(
                    "tilerelease",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack, nomem)
                );
            }
        }
    }
}
