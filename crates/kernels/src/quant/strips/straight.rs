//! Few rows of activations on AVX-512: what blocks come apart into meets them in registers and is never written. (Writing
//! 512 bits takes a core of AMD's two cycles, and a block of 256 becomes 64 such vectors for each row of activations.)

use super::avx512::{Avx512, InRegisters, below, quad, scaled};
use super::lanes::{Block, Place, Rows};
use super::large::{Parts, Taker};
use super::tile::Bytes256;
use super::{Ahead, FEW, Few, Strips, as_array};
use crate::quant::activations::{Activations, LARGE, SMALL};
use crate::quant::product::STRIP;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// How blocks of a type meet activations, by the tile that they become elsewhere.
pub(in crate::quant) trait Straight<F> {
    /// Most rows of activations for which registers hold all it takes.
    const MOST: usize;
    /// Units and sums of a block of activations.
    const PER_BLOCK: [usize; 2];
    /// Continues the sums of `M` rows of activations by one block of sixteen rows, `read` bytes into them.
    ///
    /// # Safety
    /// The blocks must be readable, and those of the activations be theirs; the machine must have AVX-512 with VNNI.
    unsafe fn add<const M: usize>(rows: Rows, x: Block<M>, sums: &mut [__m512; M], ahead: &mut Ahead, read: usize);
    /// The same by two, where that saves work: [`Strips::IN_TWOS`].
    ///
    /// # Safety
    /// As [`Straight::add`].
    unsafe fn add_two<const M: usize>(rows: Rows, x: Block<M>, sums: &mut [__m512; M]);
}

impl<F: Strips<Avx512, Tile = T>, T: InRegisters> Straight<F> for T {
    const MOST: usize = if F::TILES == 1 { FEW } else { 0 };
    const PER_BLOCK: [usize; 2] = [SMALL / 4, 1];

    #[inline(always)]
    unsafe fn add<const M: usize>(rows: Rows, x: Block<M>, sums: &mut [__m512; M], _: &mut Ahead, _: usize) {
        debug_assert!(F::TILES == 1, "other blocks come as tiles");
        // SAFETY: passed on from the caller; a tile is written before it is read.
        unsafe {
            let mut tile = MaybeUninit::uninit();
            F::unpack(rows, tile.as_mut_ptr(), 0);
            tile.assume_init_ref().add(x, sums);
        }
    }
    #[inline(always)]
    unsafe fn add_two<const M: usize>(rows: Rows, x: Block<M>, sums: &mut [__m512; M]) {
        // SAFETY: as above.
        unsafe {
            let mut tiles = MaybeUninit::<[T; 2]>::uninit();
            F::unpack_two(rows, tiles.as_mut_ptr().cast(), 0);
            let [first, second] = tiles.assume_init_ref();
            first.add(x, sums);
            second.add(x.further(1, SMALL / 4, 1), sums);
        }
    }
}

/// Adds up the products of a block's numbers, each times its integer scale.
struct Products<'a, F, const M: usize> {
    x: Block<M>,
    /// Whose scales are written.
    tile: *const Bytes256,
    all: [__m512i; M],
    ahead: &'a mut Ahead,
    read: usize,
    ty: PhantomData<F>,
}

impl<F: Parts<Avx512> + Strips<Avx512>, const M: usize> Taker<Avx512> for Products<'_, F, M> {
    #[inline(always)]
    unsafe fn take(&mut self, first: usize, eight: [__m512i; 8]) {
        for (sub, quads) in eight.chunks_exact(F::SUB / 4).enumerate() {
            // SAFETY: passed on from the caller; a block has as many units and scales.
            unsafe {
                let scale = quad(&(*self.tile).scales[4 * first / F::SUB + sub]);
                for (i, all) in self.all.iter_mut().enumerate() {
                    let mut part = _mm512_setzero_si512();
                    for (q, &w) in (first + sub * F::SUB / 4..).zip(quads) {
                        part = _mm512_dpbusd_epi32(part, w, _mm512_set1_epi32(self.x.unit(q, i)));
                    }
                    *all = _mm512_add_epi32(*all, _mm512_mullo_epi32(part, scale));
                }
            }
        }
        self.read += F::BYTES / (LARGE / 32);
        self.ahead.fetch(STRIP, self.read);
    }
}

impl<F: Parts<Avx512> + Strips<Avx512>> Straight<F> for Bytes256 {
    const MOST: usize = FEW;
    const PER_BLOCK: [usize; 2] = [LARGE / 4, LARGE / F::SUB / 2];

    #[inline(always)]
    unsafe fn add<const M: usize>(rows: Rows, x: Block<M>, sums: &mut [__m512; M], ahead: &mut Ahead, read: usize) {
        // SAFETY: passed on from the caller; of the tile all is written but its numbers, which are not read.
        unsafe {
            let mut tile = MaybeUninit::<Bytes256>::uninit();
            let tile = tile.as_mut_ptr();
            F::scales(rows, tile, 0);
            let mut sum = Products::<F, M> { x, tile, all: [_mm512_setzero_si512(); M], ahead, read, ty: PhantomData };
            F::numbers(rows, &mut sum);
            let all = sum.all;
            let below = below::<M>(tile, x, LARGE / F::SUB);
            let scales = [&(*tile).d, if F::OFFSET == 0 { &(*tile).dmin } else { &(*tile).d }];
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = match F::OFFSET {
                    0 => scaled::<true>([all[i], below[i]], scales, x.scale(i), *sum),
                    _ => scaled::<false>([all[i], below[i]], scales, x.scale(i), *sum),
                };
            }
        }
    }
    #[inline(always)]
    unsafe fn add_two<const M: usize>(_: Rows, _: Block<M>, _: &mut [__m512; M]) {
        unreachable!("blocks of 256 come one by one")
    }
}

/// Up to how many rows of activations go this way, and it.
pub(super) fn few<F: Strips<Avx512, Tile: Straight<F>>>() -> (usize, Few) {
    (F::Tile::MOST, few_rows::<F>)
}

/// # Safety
/// Blocks must be readable at sixteen rows, and the machine must have the instructions.
unsafe fn few_rows<F: Strips<Avx512, Tile: Straight<F>>>(
    rows: Rows,
    x: &Activations<'_>,
    blocks: usize,
    to: &mut [[f32; STRIP]],
) {
    let place = Place { x, row: 0, tile: 0 };
    // SAFETY: passed on from the caller.
    unsafe {
        match to.len() {
            1 if F::Tile::MOST >= 1 => by_blocks::<F, 1>(rows, blocks, &place, as_array(to)),
            2 if F::Tile::MOST >= 2 => by_blocks::<F, 2>(rows, blocks, &place, as_array(to)),
            3 if F::Tile::MOST >= 3 => by_blocks::<F, 3>(rows, blocks, &place, as_array(to)),
            4 if F::Tile::MOST >= 4 => by_blocks::<F, 4>(rows, blocks, &place, as_array(to)),
            count => unreachable!("{count} rows are not few"),
        }
    }
}

/// # Safety
/// As [`few_rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)]
unsafe fn by_blocks<F: Strips<Avx512, Tile: Straight<F>>, const M: usize>(
    rows: Rows,
    blocks: usize,
    place: &Place<'_>,
    to: &mut [[f32; STRIP]; M],
) {
    let [units, sums_each] = F::Tile::PER_BLOCK;
    // SAFETY: passed on from the caller; the activations were checked.
    unsafe {
        place.check::<M>(blocks, units, sums_each);
        let mut sums = [_mm512_setzero_ps(); M];
        let (x, mut ahead, mut b) = (place.block::<M>(0, units, sums_each), Ahead::new(rows, F::BYTES), 0);
        while F::IN_TWOS && b + 2 <= blocks {
            F::Tile::add_two(rows.further(b * F::BYTES), x.further(b, units, sums_each), &mut sums);
            b += 2;
            ahead.fetch(STRIP, b * F::BYTES);
        }
        while b < blocks {
            let read = b * F::BYTES;
            F::Tile::add(rows.further(read), x.further(b, units, sums_each), &mut sums, &mut ahead, read);
            b += 1;
            ahead.fetch(STRIP, b * F::BYTES);
        }
        for (to, sum) in to.iter_mut().zip(sums) {
            _mm512_storeu_ps(to.as_mut_ptr(), sum);
        }
    }
}
