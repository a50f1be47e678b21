/*
 * attention_plan.cuh - what the kernels around attention share: how a token's pages are cut into
 * units, the work list, and where a query row's elements lie.
 *
 * A unit is one token and a run of consecutive pages of its sequence; a group is a run of
 * consecutive units: of 32 pages, which an item can hold, or of 16 units where a token has so many
 * pages that its groups would be too many to fold.  How many pages make a unit and how many units a
 * group depends on the number of pages the token sees and on nothing else.  A group is its units
 * folded from left to right, the result its groups folded from left to right.  Hence a token's
 * result is the same for every neighbour, placement and window.
 *
 * What CTAs take are items: a whole group, folded in registers, or a part of one, whose
 * units' partials go through memory; times kv-heads.  Where there is much work items are whole
 * groups, or smaller towards the end; units with remote pages stand alone; where there is so
 * little that every item finds a CTA of its own the plan is `spread`.  Those choices may depend on
 * the batch, for they change who computes a unit and not what comes of it.
 */
#ifndef DAKD_KERNELS_CUDA_ATTENTION_PLAN_CUH
#define DAKD_KERNELS_CUDA_ATTENTION_PLAN_CUH

#include "kernels/cuda/attention.h"
#include "kernels/cuda/ptx.cuh"

enum {
    CU_ATT_FAN = 16,       /* units of a group, at most */
    CU_ATT_GROUP_MAX = 16, /* query heads of a kv-head: rows of an mma */
    CU_ATT_STATIC = 3,     /* items a CTA takes without asking the ticket */
    /* A head's K and V of a page in e4m3, of 65..128 dimensions (kernels.h): its atoms, then the
     * exponents. */
    CU_ATT_E4M3_ATOMS_BYTES = 2 * KN_ATOM_BYTES,
    CU_ATT_E4M3_HEAD_BYTES = CU_ATT_E4M3_ATOMS_BYTES + 2 * KN_PAGE_TOKENS,
};

/* An item of the work list: a group or an aligned part of one. */
struct __align__(16) kn_cu_unit
{
    int32_t token;
    int32_t slot;                   /* where the first unit's partial goes; the others follow */
    int32_t first_slot, unit_count; /* of all units of the token */
    int32_t page_begin, page_end;   /* pages of the sequence, absolute */
    int32_t key_begin, key_end;     /* positions the token sees, absolute */
    int32_t table;                  /* the sequence's page table in batch.pages */
    int32_t old_pages;              /* its pages that this step does not write */
    int32_t unit_shift;             /* log2 of pages of a unit */
    int32_t whole;                  /* 1 where it is all of its group */
};

struct kn_cu_plan_head {
    int32_t unit_count[KN_TIER_MAX]; /* items, by the highest tier among a unit's pages */
    struct kn_cu_window window[KN_TIER_MAX];
    uint32_t ticket[KN_TIER_MAX]; /* zero between launches */
    uint32_t done;
    int32_t spread_pages; /* pages of an item where every item has a CTA of its own; else 0 */
};

/* Rows of a query tile: the group padded to half an mma or a whole one. */
__host__ __device__ inline int32_t cu_att_rows(int32_t group)
{
    return group <= 8 ? 8 : 16;
}
/* 128-byte atoms that hold a head of K or V. */
__host__ __device__ inline int32_t cu_att_atoms(int32_t head_dim)
{
    return (head_dim + 63) / 64;
}
__host__ __device__ inline int32_t cu_att_q_bytes(int32_t group, int32_t head_dim)
{
    return cu_att_rows(group) * cu_att_atoms(head_dim) * 128;
}

/* Byte of element (row, d) in a query tile: the A fragments of m16n8k16, one k-step after another,
 * each lane's registers together; with 8 rows the registers of rows 8..15 are left out. */
PTX_INLINE uint32_t cu_att_q_offset(int rows, int row, int d)
{
    const int step = d >> 4, c = d & 15;
    const int lane = (row & 7) * 4 + ((c & 7) >> 1);
    const int reg = rows == 8 ? c >> 3 : (row >> 3) + 2 * (c >> 3);
    return step * rows * 32 + lane * (rows == 8 ? 8 : 16) + reg * 4 + (c & 1) * 2;
}

/* The place of dimension d in a query tile where KV is e4m3 (decode_attention_e4m3.cuh): of 16, the
 * pair 4c, 4c + 1 lies at 2c and the pair 4c + 2, 4c + 3 at 2c + 8. */
PTX_INLINE int cu_att_e4m3_slot(int d)
{
    return (d & ~15) + (d >> 2 & 3) * 2 + (d & 2) * 4 + (d & 1);
}

/* kn_page_tier, kn_page_index and kn_atom_offset for device code. */
PTX_INLINE uint32_t cu_page_tier(kn_page page)
{
    return page >> 28;
}
PTX_INLINE uint32_t cu_page_index(kn_page page)
{
    return page & 0x0FFFFFFFu;
}
PTX_INLINE uint32_t cu_atom_offset(uint32_t row, uint32_t byte)
{
    return row * KN_ATOM_ROW_BYTES + (((byte >> 4) ^ (row & 7)) << 4) + (byte & 15);
}

/* Pages [*begin, *end) and the first key that a token at `position` sees. */
PTX_INLINE void cu_att_visible(int32_t position, int32_t window, int32_t *key_begin, int32_t *begin,
                               int32_t *end)
{
    *key_begin = window > 0 && position >= window ? position - window + 1 : 0;
    *begin = *key_begin / KN_PAGE_TOKENS;
    *end = position / KN_PAGE_TOKENS + 1;
}

#endif
