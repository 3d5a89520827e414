/* Which class an AArch64 instruction belongs to, from its 32 bits.
 *
 * Reference: Arm Architecture Reference Manual for A-profile (DDI 0487), C4.1, the A64 encoding index.
 * The top-level groups are told apart by bits 28 to 25.
 */
#ifndef TVM_MOBILENET_CLASSIFY_H
#define TVM_MOBILENET_CLASSIFY_H

#include <stdbool.h>
#include <stdint.h>

/* The order is part of the file format: native/board_agent/counting.h names the classes. */
enum instruction_class {
  CLASS_FMA,        /* vector and floating-point multiply-add, dot product, matrix multiply-add */
  CLASS_SIMD,       /* every other vector or floating-point instruction */
  CLASS_LOAD_STORE, /* loads, stores, prefetches and atomics, of any register */
  CLASS_BRANCH,     /* jumps, calls, returns, conditional or not */
  CLASS_OTHER,      /* integer arithmetic, addresses, moves, system */
  CLASS_COUNT
};

static inline uint32_t bits(uint32_t word, int high, int low) {
  return (word >> low) & ((1u << (high - low + 1)) - 1);
}

/* Advanced SIMD with two or three vectors, scalar forms included (bits 28-24 are x1110). */
static inline bool is_fma_three_registers(uint32_t word) {
  bool unsigned_form = bits(word, 29, 29);
  if (bits(word, 21, 21)) {
    if (bits(word, 10, 10)) { /* three the same: MLA, MLS, FMLA, FMLS, FMLAL, FMLSL and their second halves */
      uint32_t opcode = bits(word, 15, 11);
      return opcode == 0x12 || opcode == 0x19 || (opcode == 0x1d && !unsigned_form);
    }
    if (bits(word, 11, 10) == 0) { /* three different: [SU]MLAL, [SU]MLSL, SQDMLAL, SQDMLSL */
      uint32_t opcode = bits(word, 15, 12);
      return opcode == 0x8 || opcode == 0xa || ((opcode == 0x9 || opcode == 0xb) && !unsigned_form);
    }
    return false;
  }
  if (!bits(word, 10, 10)) return false; /* table look-ups, permutes, EXT */
  if (bits(word, 15, 15)) {
    /* three the same, extra: dot products, matrix products, SQRDMLAH, BFMLAL, FCMLA; FCADD adds only */
    uint32_t opcode = bits(word, 14, 11);
    return opcode != 0xc && opcode != 0xe;
  }
  /* three the same, half precision: FMLA, FMLS */
  return bits(word, 22, 22) && bits(word, 15, 11) == 0x01 && !unsigned_form;
}

/* Advanced SIMD by one element, scalar forms included (bits 28-24 are x1111). */
static inline bool is_fma_by_element(uint32_t word) {
  if (bits(word, 10, 10)) return false; /* shifts by an immediate, MOVI */
  uint32_t opcode = bits(word, 15, 12);
  /* What is left out multiplies and does not add: MUL, FMUL, [SU]MULL, SQDMULL, SQDMULH, FMULX. */
  return bits(word, 29, 29) ? opcode < 0x9 || opcode > 0xb : opcode < 0x8 || opcode > 0xd;
}

static inline enum instruction_class classify_advsimd(uint32_t word) {
  bool is_scalar_float = bits(word, 30, 30) == 0 && bits(word, 28, 28) == 1;
  if (is_scalar_float) return bits(word, 31, 24) == 0x1f ? CLASS_FMA : CLASS_SIMD; /* FMADD and kin */
  if (bits(word, 31, 31)) return CLASS_SIMD;                                     /* SHA-3, SM3, SM4 */
  bool is_fma = bits(word, 24, 24) ? is_fma_by_element(word) : is_fma_three_registers(word);
  return is_fma ? CLASS_FMA : CLASS_SIMD;
}

static inline enum instruction_class classify_sve(uint32_t word) {
  if (bits(word, 31, 31)) return CLASS_LOAD_STORE;
  bool is_fma = false;
  switch (bits(word, 31, 24)) {
    case 0x04: /* MLA, MLS, MAD, MSB */
      is_fma = !bits(word, 21, 21) && bits(word, 14, 14);
      break;
    case 0x44: /* integer multiply-add and dot product, of vectors or by element */
      is_fma = bits(word, 21, 21) ? bits(word, 15, 14) != 3 : !bits(word, 15, 15);
      break;
    case 0x45: /* SMMLA, USMMLA, UMMLA */
      is_fma = !bits(word, 21, 21) && bits(word, 15, 10) == 0x26;
      break;
    case 0x64: /* FCMLA; by element, widening, dot product and matrix product, but not FMUL */
      is_fma = bits(word, 21, 21) ? bits(word, 15, 10) != 0x08 : !bits(word, 15, 15);
      break;
    case 0x65: /* FMLA, FMLS, FNMLA, FNMLS, FMAD, FMSB, FNMAD, FNMSB */
      is_fma = bits(word, 21, 21);
      break;
    default:
      break;
  }
  return is_fma ? CLASS_FMA : CLASS_SIMD;
}

static inline enum instruction_class classify_sme(uint32_t word) {
  switch (bits(word, 31, 25)) {
    case 0x40: /* outer products */
    case 0x50:
      return CLASS_FMA;
    case 0x60:
      return CLASS_SIMD;
    case 0x70:
      return CLASS_LOAD_STORE;
    default:
      return CLASS_OTHER;
  }
}

static inline enum instruction_class classify(uint32_t word) {
  uint32_t group = bits(word, 28, 25);
  if ((group & 0x5) == 0x4) return CLASS_LOAD_STORE;
  if ((group & 0x7) == 0x7) return classify_advsimd(word);
  if ((group & 0xe) == 0xa) {
    bool is_system = bits(word, 31, 25) == 0x6a; /* SVC, MSR, barriers, hints */
    return is_system ? CLASS_OTHER : CLASS_BRANCH;
  }
  if (group == 0x2) return classify_sve(word);
  if (group == 0x0) return classify_sme(word);
  return CLASS_OTHER;
}

#endif
