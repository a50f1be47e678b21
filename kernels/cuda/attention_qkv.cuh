/*
 * attention_qkv.cuh - decode attention makes q, k and v itself, of the parts of the QKV product:
 * what the consumers of decode_attention.cuh do besides multiplying.  For steps of one token a
 * sequence; where a step has several, a later one reads what an earlier one appends, and a kernel
 * of its own (qkv.cu) comes in between.
 *
 * Floor: none of it comes from HBM.  That kernel cost 2.6 us a layer at 1 token of an 8B shape, 3.9
 * at 32: a handover, a trip to L2, stores, an end, after which attention made a trip of its own for
 * q; and pages that the step writes had to wait for it.
 *
 * How.  An item begins with stages of sums in the ring, like pages: the parts of its group's query
 * heads (runs of memory: one bulk copy each), and before them the row of angles and the norms'
 * weights, which need not wait for the product.  The consumers add them up from shared memory, a
 * head for every 16 lanes (32 above 128 dimensions), normalise, rotate, and leave q as a tile; one
 * barrier among them, and they go on with the pages.  The trip to L2 is thus hidden by the ring,
 * but for a CTA's first.
 *
 * The item with the sequence's last page makes the token's own key and value too: to memory, for
 * later steps, and to shared memory, from where the warp that has their row puts them into the page
 * once it has landed.  So that page need not be young: all pages are fetched as old ones are.  What
 * lands in the row is never read; no other item sees it.
 *
 * Rehearsal.  What a launch runs for the first time must be fetched, and on the way to the first
 * page that took longer than to run: so the consumers make a q of zeros before anything has landed.
 *
 * Prediction, Llama-3.1-8B at 1,024 tokens of context: attention takes 0.4 us more than with q
 * ready (sums are more than q, and added up), the kernel's 2.6, 3.9 and about 5 us at 1, 32 and 128
 * tokens go: 0.07, 0.11 and 0.15 ms a step.
 *
 * Measured on an H200, one binary with that kernel and without it (though one that was itself
 * slower by 0.8 us a layer from 32 tokens on), steps of 1, 8, 32 and 128 sequences after 1,024
 * tokens, in ms: 3.750, 3.941, 4.987, 8.918 and 3.740, 3.927, 4.951, 8.766; against the kernel as
 * it is, before the rehearsal: 3.687, -, 4.964, 8.839 and 3.723, -, 4.949, 8.690.  Served steps
 * (graphs) of 1, 8 and 32 at 512 tokens: 3.568, 3.694, 4.486 and 3.606, 3.793, 4.450; a shorter run
 * 3.569, 3.700, 4.594 and 3.616, 3.818, 4.641.  So what is predicted comes at 128, and it is done
 * from 33 tokens on (attend.c).  From the product's end q takes 2.3 us in place of 3.7 at 1 token,
 * 2.7 in place of 4.8 at 32; but that time was not lost before, for rings were filled in it, and a
 * step of few tokens next waits for trips behind the burst of the next product's weights, which
 * begins as much earlier.  Where contexts are short and tokens few, items are small, and each makes
 * its q anew.
 *
 * Tried and dropped: without the rehearsal, q 0.6 us later and steps of 1 and 32 tokens 0.8 and 0.5
 * per cent longer; one or two pages beyond the ring brought to L2 before the wait (nothing); the
 * next kernel let in when q is made (at 32 tokens 0.3 per cent longer than after the first item),
 * or at once under a spread plan (0.7 per cent at 1 token).
 *
 * Invariants
 *  1. Bits are those of qkv.cu's kernel followed by this one with q from the workspace (qkv.cuh).
 *  2. sums and the rest of what the product writes are read after griddepcontrol.wait, by the
 *     producer's copies; the angles and weights are older than the step.
 *  3. Tiles of q and rows of k and v have two places, which items take in turns.  One barrier an
 *     item is enough: who writes the place of the item before the last has passed the barrier of
 *     the last, and so have all others, who had read that place before.
 *  4. A row is put into a stage by ordinary stores; a fence orders them before the copy that fills
 *     the stage again.
 */
#ifndef DAKD_KERNELS_CUDA_ATTENTION_QKV_CUH
#define DAKD_KERNELS_CUDA_ATTENTION_QKV_CUH

#include "kernels/cuda/attention_ring.cuh"
#include "kernels/cuda/qkv.cuh"

/* Named barriers of the consumers. */
enum { CU_ATT_MADE_BARRIER = 1, CU_ATT_PATCHED_BARRIER = 2 };

/* One warp lets go of a stage. */
template <typename SHARED>
PTX_INLINE void cu_att_release(SHARED &sh, cu_att_cursor *at, int stages, int lane)
{
    __syncwarp();
    cu_release(&sh.empty[at->stage], lane);
    cu_att_next(at, stages);
}

/* Idle rows and what is beyond the head are zero, and nobody writes them. */
template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_clear_tiles(cu_att_shared<ATOMS, ROWS> &sh, int thread)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    for (int i = thread; i < 2 * shape::Q_BYTES / 16; i += shape::THREADS)
        ((uint4 *)sh.q)[i] = zero;
    for (int i = thread; i < (int)sizeof sh.own / 16; i += shape::THREADS)
        ((uint4 *)sh.own)[i] = zero;
}

/* The sum of a head's parts, from the stages of an item, the first of which is stage `first`; or
 * from zeros. */
template <typename SHARED>
PTX_INLINE cu_qkv_quads cu_att_add_parts(const cu_att_params &p, SHARED &sh, int first, int head,
                                         int d, bool zeros)
{
    cu_qkv_quads x = cu_qkv_zero();
    int s = first, in_stage = 0;
#pragma unroll
    for (int part = 0; part <= KN_CU_PARTS_MAX; part++) {
        if (part >= p.sums.parts) break;
        const uint8_t *at = cu_att_ring(sh, p.stages, s) + cu_att_sum_offset(p, in_stage, head);
        const float *from = (const float *)(zeros ? sh.own[0] : at) + d;
        cu_qkv_add(x, {*(const float4 *)from, *(const float4 *)(from + p.head_dim / 2)});
        if (++in_stage < p.sums.stage_parts) continue;
        in_stage = 0;
        if (++s == p.stages) s = 0;
    }
    return x;
}

/* k or v of the token: to memory, and to the place where the page's warp finds it. */
template <int LANES, int ATOMS, int ROWS>
PTX_INLINE void cu_att_keep_own(const cu_att_params &p, cu_att_shared<ATOMS, ROWS> &sh,
                                const cu_att_sums_page &page, const cu_qkv_quads &x, bool value,
                                int side, int lane)
{
    const int d = 4 * (lane & (LANES - 1)), half = p.head_dim / 2;
    cu_qkv_append<LANES>(x, page.own + (value ? ATOMS * KN_ATOM_BYTES : 0),
                         page.position % KN_PAGE_TOKENS, p.head_dim, lane);
    if (d >= half) return;
    uint8_t *row = sh.own[side] + (value ? ATOMS * KN_ATOM_ROW_BYTES : 0);
    *(uint2 *)(row + 2 * d) = cu_qkv_pack(x.low);
    *(uint2 *)(row + 2 * (half + d)) = cu_qkv_pack(x.high);
}

/* Makes an item's q, and k and v where they are its own, of the stages of sums from `at` on, of
 * which the first has landed; or rehearses that, on zeros.  All consumer warps. */
template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_make(const cu_att_params &p, cu_att_shared<ATOMS, ROWS> &sh,
                            cu_att_cursor *at, int side, int warp, int lane, bool rehearsal)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    constexpr int LANES = ATOMS == 4 ? 32 : 16, SEATS = shape::CONSUMERS * 32 / LANES;
    const int d = 4 * (lane & (LANES - 1)), half = p.head_dim / 2, first = at->stage;
    const int stages = rehearsal ? 0 : p.sums.stages, row = rehearsal ? 0 : p.head_dim;
    cu_att_cursor landed = *at;
    for (int i = 1; i < stages; i++) {
        cu_att_next(&landed, p.stages);
        ptx_mbarrier_wait(&sh.full[landed.stage], landed.parity);
    }
    cu_att_sums_page page = {};
    if (!rehearsal) page = *(const cu_att_sums_page *)&sh.page[first];
    const float *constant =
        (const float *)(rehearsal ? sh.own[0] : cu_att_ring(sh, p.stages, first)) + d;
    const int heads = p.group + (page.flags & CU_ATT_OWN ? 2 : 0);
    for (int head = (warp * 32 + lane) / LANES; head < heads; head += SEATS) {
        const bool there = d < half, is_q = head < p.group, is_v = head == p.group + 1;
        cu_qkv_quads x = cu_qkv_zero();
        if (there) x = cu_att_add_parts(p, sh, first, head, d, rehearsal);
        if (is_q ? p.sums.q_norm : is_v ? NULL : p.sums.k_norm) {
            const float *weight = constant + (is_q ? 1 : 2) * row;
            const float scale = cu_qkv_scale<LANES>(x, p.sums.norm_eps, p.head_dim, lane);
            if (there) {
                cu_qkv_norm_quad(x.low, scale, *(const float4 *)weight);
                cu_qkv_norm_quad(x.high, scale, *(const float4 *)(weight + half));
            }
        }
        if (p.sums.rope && !is_v && there)
            cu_qkv_rotate(x, *(const float4 *)constant, *(const float4 *)(constant + half));
        if (is_q) cu_qkv_lay_out<LANES>(x, sh.q[side], ROWS, head, p.head_dim, lane);
        else cu_att_keep_own<LANES>(p, sh, page, x, is_v, side, lane);
    }
    for (int i = 0; i < stages; i++) cu_att_release(sh, at, p.stages, lane);
    ptx_bar_sync(CU_ATT_MADE_BARRIER, 32 * shape::CONSUMERS);
}

/* Puts the token's own row into stage i of its page, which has landed at shared address `stage`. */
template <typename SHARED>
PTX_INLINE void cu_att_patch(SHARED &sh, uint32_t stage, int i, int side, int row, int lane)
{
    const uint2 own = *(const uint2 *)(sh.own[side] + i * CU_ATT_STAGE_ROW + lane * 8);
    ptx_store_shared_v2(stage + (lane >> 4) * KN_ATOM_BYTES + cu_atom_offset(row, (lane & 15) * 8),
                        own);
    ptx_fence_proxy_async();
    __syncwarp();
}

/* The same of a key, before all consumer warps read it; two teams read the stage, so the first does
 * it for both. */
template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_patch_key(cu_att_shared<ATOMS, ROWS> &sh, uint32_t stage, int i, int side,
                                 int row, int warp, int lane)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    if (row >> 4 == warp) cu_att_patch(sh, stage, i, side, row, lane);
    if (shape::TEAMS == 2) ptx_bar_sync(CU_ATT_PATCHED_BARRIER, 32 * shape::CONSUMERS);
}

#endif
