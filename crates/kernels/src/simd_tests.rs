//! Every method of [`Simd`](crate::simd::Simd) against the same thing said in scalar Rust, per instruction set.

use crate::isa::testable;
use crate::rng::Rng;
use crate::simd::{Kernel, MAX_LANES, Simd, dispatch_on};
use half::bf16;

struct CheckAll;

/// Compares a vector with a function of the lane.
fn same<S: Simd>(s: S, what: &str, v: S::V, exact: impl Fn(usize) -> f32) {
    let mut out = [0.0; MAX_LANES];
    s.store(&mut out, v);
    for (i, &x) in out[..S::LANES].iter().enumerate() {
        let e = exact(i);
        assert!(x.to_bits() == e.to_bits() || (x.is_nan() && e.is_nan()), "{:?} {what} lane {i}: {x} != {e}", s.isa());
    }
}

fn check_arithmetic<S: Simd>(s: S, a: &[f32], b: &[f32], c: &[f32]) {
    let (va, vb, vc) = (s.load(a), s.load(b), s.load(c));
    same(s, "add", s.add(va, vb), |i| a[i] + b[i]);
    same(s, "sub", s.sub(va, vb), |i| a[i] - b[i]);
    same(s, "mul", s.mul(va, vb), |i| a[i] * b[i]);
    same(s, "div", s.div(va, vb), |i| a[i] / b[i]);
    let fused = s.isa() != crate::Isa::Scalar;
    same(s, "fma", s.fma(va, vb, vc), |i| if fused { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] });
    same(
        s,
        "neg_fma",
        s.neg_fma(va, vb, vc),
        |i| if fused { (-a[i]).mul_add(b[i], c[i]) } else { -a[i] * b[i] + c[i] },
    );
    same(s, "neg", s.neg(va), |i| -a[i]);
    let mut bytes = [99; MAX_LANES];
    s.store_low_bytes(&mut bytes, va);
    let expected = |i: usize| if i < S::LANES { a[i].to_bits() as i8 } else { 99 };
    assert!(bytes.iter().enumerate().all(|(i, &byte)| byte == expected(i)), "{:?} store_low_bytes", s.isa());
    same(s, "abs", s.abs(va), |i| a[i].abs());
    same(s, "with_sign", s.with_sign(s.abs(va), vb), |i| a[i].abs().copysign(b[i]));
    same(s, "max", s.max(va, vb), |i| if a[i] > b[i] { a[i] } else { b[i] });
    same(s, "min", s.min(va, vb), |i| if a[i] < b[i] { a[i] } else { b[i] });
    same(s, "sqrt", s.sqrt(s.abs(va)), |i| a[i].abs().sqrt());
    // Adding zero makes both zeros the positive one: their sign is not promised.
    same(s, "round", s.add(s.round(va), s.zero()), |i| a[i].round_ties_even() + 0.0);
    same(s, "splat", s.splat(2.5), |_| 2.5);
    same(s, "scale_pow2", s.scale_pow2(va, s.round(vb)), |i| a[i] * b[i].round_ties_even().exp2());
    let (table, codes) = (a.first_chunk().expect("sixteen"), [0x0f, 0x1e, 0xd2, 0xc3, 0xb4, 0x5a, 0x69, 0x78]);
    same(s, "look_up", s.look_up(table, &codes), |i| table[usize::from(codes[i / 2] >> (4 * ((i + 1) % 2)) & 15)]);
    let pick = |m: bool| if m { 1.0 } else { 2.0 };
    let mask = |m: S::M| s.select(m, s.splat(1.0), s.splat(2.0));
    same(s, "lt", mask(s.lt(va, vb)), |i| pick(a[i] < b[i]));
    same(s, "le", mask(s.le(va, vb)), |i| pick(a[i] <= b[i]));
    same(s, "gt", mask(s.gt(va, vb)), |i| pick(a[i] > b[i]));
    same(s, "ge", mask(s.ge(va, va)), |i| pick(!a[i].is_nan()));
    same(s, "eq", mask(s.eq(va, va)), |i| pick(!a[i].is_nan()));
    let (m, e) = s.split_pow2(s.abs(va));
    let (mut mantissa, mut exponent) = ([0.0; MAX_LANES], [0.0; MAX_LANES]);
    s.store(&mut mantissa, m);
    s.store(&mut exponent, e);
    for i in 0..S::LANES {
        assert!((0.75..1.5).contains(&mantissa[i]));
        assert_eq!(mantissa[i] * exponent[i].exp2(), a[i].abs());
    }
}

fn check_reductions<S: Simd>(s: S, a: &[f32]) {
    let v = s.load(a);
    let lanes = &a[..S::LANES];
    let sum: f64 = lanes.iter().map(|&x| f64::from(x)).sum();
    assert!((f64::from(s.reduce_sum(v)) - sum).abs() < 1e-3);
    assert_eq!(s.reduce_max(v), lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    for n in 0..=S::LANES + 1 {
        same(s, "first", s.select(s.first(n), v, s.zero()), |i| if i < n { a[i] } else { 0.0 });
        assert_eq!(s.all(s.first(n)), n >= S::LANES);
    }
}

fn check_partial<S: Simd>(s: S, a: &[f32]) {
    for n in 0..=S::LANES + 2 {
        let v = s.load_partial(&a[..n]);
        same(s, "load_partial", v, |i| if i < n { a[i] } else { 0.0 });
        let mut out = [7.0_f32; MAX_LANES + 4];
        s.store_partial(&mut out[..n], v);
        let stored = n.min(S::LANES);
        assert_eq!(out[..stored], a[..stored]);
        assert!(out[stored..].iter().all(|&x| x == 7.0), "nothing beyond the slice is written");
        let narrow: Vec<bf16> = a[..n].iter().map(|&x| bf16::from_f32(x)).collect();
        let v = s.load_bf16_partial(&narrow);
        same(s, "load_bf16_partial", v, |i| if i < n { narrow[i].to_f32() } else { 0.0 });
        let mut out = [bf16::from_f32(7.0); MAX_LANES + 4];
        s.store_bf16_partial(&mut out[..n], v);
        assert_eq!(out[..stored], narrow[..stored]);
        assert!(out[stored..].iter().all(|x| x.to_f32() == 7.0));
    }
}

fn check_bf16<S: Simd>(s: S, a: &[f32]) {
    let mut narrow = [bf16::ZERO; MAX_LANES];
    s.store_bf16(&mut narrow, s.load(a));
    for i in 0..S::LANES {
        let exact = bf16::from_f32(a[i]);
        assert!(narrow[i] == exact || (narrow[i].is_nan() && a[i].is_nan()), "{:?} bf16 of {}", s.isa(), a[i]);
    }
    same(s, "load_bf16", s.load_bf16(&narrow), |i| narrow[i].to_f32());
}

impl Kernel for CheckAll {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rng = Rng::new(1, "simd", 0);
        let (mut a, mut b, mut c) = ([0.0; 20], [0.0; 20], [0.0; 20]);
        for round in 0..50 {
            rng.fill_normal(&mut a, 0.0, 3.0);
            Rng::new(2, "simd", round).fill_normal(&mut b, 0.0, 3.0);
            Rng::new(3, "simd", round).fill_normal(&mut c, 0.0, 3.0);
            a[(round % 20) as usize] = round as f32 + 0.5;
            check_arithmetic(s, &a, &b, &c);
            check_reductions(s, &b);
            check_partial(s, &a);
            check_bf16(s, &c);
        }
        let mut special = [0.0; 20];
        let odd = [f32::NAN, f32::INFINITY, -f32::INFINITY, f32::MAX, 1.003_906_3, 1.011_718_8, -1e-40, 3.4e38];
        special.iter_mut().zip(odd.iter().cycle()).for_each(|(x, &o)| *x = o);
        check_bf16(s, &special);
    }
}

#[test]
fn every_operation_equals_its_scalar_meaning() {
    for isa in testable() {
        dispatch_on(isa, CheckAll);
    }
}

#[test]
#[should_panic(expected = "src.len() >= Self::LANES")]
fn a_whole_load_from_a_short_slice_panics() {
    struct Short;
    impl Kernel for Short {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let v = s.load(&[1.0, 2.0]);
            s.reduce_sum(v);
        }
    }
    dispatch_on(crate::Isa::Scalar, Short);
}
