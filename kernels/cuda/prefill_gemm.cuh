/*
 * prefill_gemm.cuh - out[T,N] = epilogue(x[T,K] . W[N,K]^T + bias) for prompts and large batches: T
 * above 128.
 *
 * Floor: 2*T*N*K operations at the pace of the tensor cores, 4,096 a clock and SM: 989 TFLOPS at
 * 1.83 GHz.  With random data the card is at its power limit and lowers its clock to 1.4 to 1.5
 * GHz, so that what cuBLAS reaches in the same run is the yardstick; predicted: as much.  Whatever
 * leaves the tensor cores idle must be made up for at a higher clock and voltage.
 *
 * Tiles.  A CTA multiplies RT row tiles of weights (64 rows each, the wgmma M operand; a consumer
 * warpgroup for each) with TN tokens (the N operand).  A stage is 64 inputs: an atom of each row
 * tile, and TN rows of an atom of activations, which lie in memory as shared memory wants them:
 * plain bulk copies, no tensor maps.  At 128 x 256 a stage of 48 KB takes the tensor cores 1,024
 * clocks.  L2 was not seen to give all SMs more than 73 GB/s each, 43 to 48 bytes a clock, so that
 * copies must be shared:
 *
 * Clusters of CR x CT CTAs: those with the same rows take the same weights, those with the same
 * tokens the same activations, each fetched by one of them and multicast.  CT > 1 is also how
 * remote weights cross the link once for CT tiles of tokens: remote memory is not cached in L2.
 *
 * Turns.  With one row tile there are two warpgroups still, which take the CTA's tiles in turn:
 * while one stores, the other multiplies.  That costs copies (48 bytes a clock at 64 x 256 in
 * clusters of two, 32 at 128 x 256) and saves the 2 to 3 us a tile in which two warpgroups that
 * share a tile both store it.
 *
 * Roles.  The warpgroups of consumers, then three lanes of their own warps:
 *     weights      its share of the stages' weights, before griddepcontrol.wait if it can.
 *     activations  its share of their activations, after it.
 *     watcher      where a tier is remote, sees stages land and stamps round trips.
 *
 * Order.  Clusters are persistent and take every so-many-th unit, a unit being CR groups of row
 * tiles and CT token tiles.  Units go through a band of token tiles, then to the next rows, then to
 * the next band, so that what runs at one time shares rows and tokens in L2.  Rows of remote tiers
 * are spread evenly among the local ones: the link has work all the time.
 *
 * Changing hands.  Where units are no multiple of the clusters, the last round and the one before
 * are laid end to end and cut in equal pieces (McNaughton's rule: as a piece is no shorter than a
 * unit, none is cut twice, and the two parts of a unit need not overlap in time).  The cluster that
 * has a unit's first inputs computes them first and leaves its sums in L2; the one that has the
 * rest computes it last and goes on from these sums.  Nothing is added that was not added before,
 * so the result stays bitwise what one CTA would have computed.  Two clusters with the same rows
 * cut alike and stay abreast: their weights come from HBM once.
 *
 * Parts.  Up to 256 tokens there may be fewer tiles than SMs.  Then K is cut into parts, each a
 * unit of its own, which another kernel adds up in order, as in decode_gemm.cuh; into how many the
 * shape and the token bucket say alone.
 *
 * Epilogue.  Through shared memory of the warpgroup's own, while the producers fill the ring for
 * the next unit; sums for KN_EPI_ADD are reductions in L2, which nobody waits for, and which know
 * no subnormals.
 *
 * Invariants
 *  1. A sum is of all K, or of all of a part of it, in order of k: results are bitwise the same for
 *     every tile, cluster, cut, placement and window, and those of the wide GEMM.
 *  2. All CTAs of a cluster pass the same stages, whether or not rows or tokens are there for them;
 *     a consumer whose rows or tokens are missing only passes its slots on.
 *  3. A slot is written again when the consumers of every CTA that its copies go to have released
 *     it: they arrive at the `empty` of each CTA of their row and column.
 *  4. A stage is complete when both producers of the CTA have said how many bytes it gets and these
 *     have come; bytes of peers may come first.
 *  5. Of a remote tier as many blocks are in flight as its window has, or one stage for each group
 *     of row tiles that reads it where these are more.
 *  6. Who takes sums over waits for a cluster that began no later and waits for none itself before
 *     it has given them; clusters that are not resident yet follow as others end.
 *  7. A warpgroup waits for none of the stages of the other's tiles.  It begins when the other has
 *     seen the last of them land, so that of any slot it waits for the next filling, and a parity
 *     cannot be that of the one before the last.  A turn is passed once for each tile but the last.
 *
 * Measured on an H200 at its power limit, products of Llama-3.1-8B and 70B layers, random normal
 * data (tests/gpu_prefill --bench): time of the fastest of cuBLASLt's algorithms over ours, bf16
 * out on both sides; 0.02 more or less from run to run:
 *               8B qkv   o     gate-up  down      70B qkv  o     gate-up  down
 *     512         1.02  1.04    0.95    1.04        0.96  1.02    1.00    1.02
 *     1,024       1.01  1.00    0.98    1.01        1.00  1.02    1.02    1.00
 *     2,048       0.96  1.00    0.99    1.01        1.01  1.00    1.00    0.99
 *     8,192       0.94  0.96    0.98    1.02        1.01  1.01    1.00    1.01
 *
 * That is 590 to 730 TFLOPS.  Against its first algorithm, which cublasGemmEx takes, 0.94 to 1.08.
 * With the fp32 sums that the engine wants of qkv, o and down it is 1 to 9 % less.
 *
 * Turns: 8B gate-up, the least before, had 0.925, 0.941, 0.945 and 0.936 with 128 x 256 tiles, at
 * 1,485 MHz for cuBLASLt's 1,425: it idled more, and had to be faster meanwhile.  Storing nothing
 * brought 3 to 6 %.  A launch of one round has no one to take turns with, and waits 4 us longer for
 * its only tile: 128 x 128 tiles then.
 *
 * At 256 tokens, us a product of an 8B layer (qkv, o, gate-up, down): 24.2, 15.8, 95.4, 47.4; the
 * wide GEMM took 27.8, 19.1, 103, 52.0, cuBLASLt's best 23.1, 18.0, 93.3, 50.5.  The 129 products
 * of a step, in turn with cuBLAS in a graph: 6.15 to 6.82 ms, 0.92 to 1.05 times cuBLAS, 1.00 in
 * the middle of five once the card is warm; the wide GEMM 1.06 times as long, with 1 to 30 % of the
 * weights in the host's memory as well.
 *
 * Abreast: 8B gate-up at 512 tokens 190 to 183 us.  Without units that change hands products of 1.2
 * to 3.4 rounds had 422 in place of 620 TFLOPS (70B qkv at 512 tokens), 592 in place of 654 (8B
 * gate-up at 512); beside what plan_cost says it is free.
 *
 * Remote, 8B gate-up, host memory over PCIe: every weight crosses the link once for up to 2,048
 * tokens (51 GB/s, the link's rate, with all of them remote); with 10 % remote at 2,048 tokens
 * 0.68 ms where all-local takes 0.65 and the link 0.46; at 1,024 0.53, 0.33 and 0.46.
 *
 * Tried and dropped: 256 x 128 tiles of four warpgroups (5 to 10 % slower at 256 tokens); 128 x 256
 * without clusters (1 %); K cut among a pair of CTAs that exchange sums (552 in place of 600 TFLOPS
 * at 8B o, 512 tokens); clusters of 2 x 2 (30 fit, 120 of 132 SMs); 192 x 256 tiles (no registers:
 * wgmma wants 154 at launch); bands of 512, 1,024, 4,096 and 8,192 tokens (1 to 5 % slower), cache
 * hints, one warpgroup ahead of the other by one or two stages (no difference).  Sums must pass
 * ptx_wgmma_registers before the first wgmma: else the compiler waits for each group (C7517), and a
 * stage at a time is computed.
 *
 * Sources: CUTLASS (cooperative warpgroups, multicast), fast.cu (128 x 256 tiles, clusters of two);
 * McNaughton 1959 (preemptive schedules); PTX ISA 9.0.
 */
#ifndef DAKD_KERNELS_CUDA_PREFILL_GEMM_CUH
#define DAKD_KERNELS_CUDA_PREFILL_GEMM_CUH

#include "kernels/cuda/wide_gemm.cuh"

#define CU_PREFILL_STAGING 8192 /* bytes of a round of the epilogue */
#define CU_PREFILL_TURN 8       /* the first of the named barriers that pass the turn */

/* Constants of a kernel. */
template <int ROW_TILES, int TOKENS, int CLUSTER_ROWS, int CLUSTER_TOKENS> struct cu_prefill_shape {
    static constexpr int RT = ROW_TILES, TN = TOKENS, CR = CLUSTER_ROWS, CT = CLUSTER_TOKENS;
    static constexpr int CTAS = CR * CT;
    static constexpr int PEERS = CR + CT - 1; /* that share copies with a CTA, itself included */
    static constexpr int TURNS = RT == 1 ? 2 : 1; /* warpgroups that take tiles in turn */
    static constexpr int WGS = RT * TURNS;        /* of consumers */
    static constexpr int WARPS = RT * 4;          /* that consume a stage */
    static constexpr int THREADS = (WGS + 1) * 128;
    static constexpr int CONSUMER_REGISTERS = WGS == 2 ? 232 : 152;
    static constexpr int PRODUCER_REGISTERS = 40;
    static constexpr int LAUNCH_REGISTERS = 65536 / THREADS / 8 * 8;
    static_assert(WGS * CONSUMER_REGISTERS + PRODUCER_REGISTERS <= (WGS + 1) * LAUNCH_REGISTERS,
                  "more registers than the launch gave: setmaxnreg would wait forever");
    static constexpr int SHARED = 227 * 1024;
    static constexpr int BARRIERS = 1024;
    static constexpr int W_BYTES = RT * KN_ATOM_BYTES, X_BYTES = TN * KN_ATOM_ROW_BYTES;
    static constexpr int BUFFERS = TURNS == 1 ? 2 : 1; /* of a warpgroup, for the epilogue */
    static constexpr int STAGES =
        (SHARED - BARRIERS - WGS * BUFFERS * CU_PREFILL_STAGING) / (W_BYTES + X_BYTES);
    static constexpr int SHARED_USED =
        STAGES * (W_BYTES + X_BYTES) + WGS * BUFFERS * CU_PREFILL_STAGING + BARRIERS;
    static_assert(STAGES >= 3, "too few stages to hide a copy");
};

template <class S> struct cu_prefill_ring {
    uint8_t x[S::STAGES][S::X_BYTES];
    uint8_t w[S::STAGES][S::W_BYTES];
    float staging[S::WGS][S::BUFFERS][CU_PREFILL_STAGING / 4];
    uint64_t full[S::STAGES], empty[S::STAGES];
    uint32_t issue_clock[S::STAGES]; /* of this CTA's remote copies; 0: none */
};

/* What a launch needs; passed by value. */
struct cu_prefill {
    cu_gemm gemm;
    int32_t row_sets, token_sets;        /* what clusters take: CR groups, CT token tiles */
    int32_t band;                        /* token sets */
    int32_t remote_before, remote_after; /* row sets with remote tiles, at either end */
    int32_t whole_units;                 /* dealt to the clusters in turn */
    int32_t abreast;                     /* clusters that cut units of the same rows alike */
    int32_t cut_stages;                  /* of the others, which each cluster takes; 0: none left */
    int32_t parts, part_stages;          /* of K; the last part may have fewer */
    float4 *handover; /* [CTA][RT][TN / 8][128] sums of units that change hands */
    uint32_t *handed; /* [CTA][RT] 1: they are there; 0 between launches */
};

/* A kernel of one shape. */
struct cu_prefill_variant {
    int32_t group_tiles, tile_tokens, cluster_rows, cluster_tokens;
    int32_t threads, shared_bytes;
    void (*kernel)(cu_prefill);
};
/* Those that read remote weights by plain loads (loads_prefill.cu). */
const cu_prefill_variant *cu_prefill_loads_variants(size_t *count);

/* A CTA's part of a unit. */
struct cu_prefill_tile {
    int32_t group; /* of RT row tiles */
    int32_t token_tile;
    int32_t part;                /* of K, */
    int32_t first_stage, stages; /* that has these of its stages */
    bool last;                   /* of this CTA; where warpgroups take turns */
    bool takes, gives; /* sums: from the same CTA of the next cluster, to that of the last */
};

/* --- who computes what --- */

/* The i-th row set to be computed: remote ones, of which there are r, are spread evenly. */
PTX_INLINE int32_t cu_prefill_row_set(const cu_prefill &p, int32_t i)
{
    const int32_t r = p.remote_before + p.remote_after;
    const int32_t before = (i * r + p.row_sets - 1) / p.row_sets;
    const int32_t after = ((i + 1) * r + p.row_sets - 1) / p.row_sets;
    if (after == before) return p.remote_before + i - before;
    return before < p.remote_before ? before : p.row_sets - r + before;
}

template <class S>
PTX_INLINE void cu_prefill_locate(const cu_prefill &p, int32_t unit, cu_prefill_tile *t)
{
    const int32_t rank = blockIdx.x % S::CTAS;
    t->part = unit % p.parts;
    unit /= p.parts;
    const int32_t band = unit / (p.row_sets * p.band), left = unit - band * p.row_sets * p.band;
    const int32_t width = min(p.band, p.token_sets - band * p.band), i = left / width;
    t->group = cu_prefill_row_set(p, i) * S::CR + rank / S::CT;
    t->token_tile = (band * p.band + left - i * width) * S::CT + rank % S::CT;
}

/* The n-th tile of this CTA; false where it has none.  Of the stages of the units that are not
 * dealt whole, cluster c has [c, c + 1) * cut_stages: the rest of a unit, units, the beginning of a
 * unit, in this order.  What is computed first must be a unit's first inputs, so these are what the
 * rest stands for.  Clusters abreast of each other count as one, and their units too. */
template <class S>
PTX_INLINE bool cu_prefill_next(const cu_prefill &p, int32_t n, cu_prefill_tile *t)
{
    const int32_t clusters = gridDim.x / S::CTAS, cluster = blockIdx.x / S::CTAS,
                  stages = 2 * p.gemm.blocks_per_tile, units = p.row_sets * p.token_sets * p.parts;
    int32_t unit = n * clusters + cluster;
    t->first_stage = unit % p.parts * p.part_stages;
    t->stages = min(p.part_stages, stages - t->first_stage);
    t->takes = t->gives = false;
    if (unit >= p.whole_units) {
        if (p.cut_stages == 0) return false;
        n -= p.whole_units / clusters;
        const int32_t left = (units - p.whole_units) / p.abreast,
                      begin = cluster / p.abreast * p.cut_stages,
                      end = min(begin + p.cut_stages, left * stages);
        const int32_t at = (begin / stages + n) * stages; /* where unit n of the cluster begins */
        if (at >= end) return false;
        unit = p.whole_units + (begin / stages + n) * p.abreast + cluster % p.abreast;
        t->first_stage = 0;
        t->stages = stages;
        if (at < begin) {
            t->stages = at + stages - begin;
            t->gives = true;
        } else if (at + stages > end) {
            t->stages = end - at;
            t->first_stage = stages - t->stages;
            t->takes = true;
        }
    }
    cu_prefill_locate<S>(p, unit, t);
    return true;
}

/* For every tile of this CTA. */
#define CU_PREFILL_TILES(S, p, tile)                                                               \
    cu_prefill_tile tile;                                                                          \
    for (int32_t tile_n = 0; cu_prefill_next<S>(p, tile_n, &tile); tile_n++)

/* The chunk of 256 tokens that a token tile lies in. */
struct cu_prefill_chunk {
    int32_t index, bucket;
    int32_t first;  /* token of the chunk that the tile begins with */
    int32_t tokens; /* of the tile; 0 beyond the last tile */
};

template <class S>
PTX_INLINE cu_prefill_chunk cu_prefill_chunk_of(const cu_gemm &g, int32_t token_tile)
{
    cu_prefill_chunk c;
    c.index = token_tile * S::TN / KN_CU_TOKENS_MAX;
    c.first = token_tile * S::TN % KN_CU_TOKENS_MAX;
    const int32_t left = g.tokens - c.index * KN_CU_TOKENS_MAX;
    c.bucket = left >= KN_CU_TOKENS_MAX ? KN_CU_TOKENS_MAX : kn_cu_bucket_of(left);
    c.tokens = max(min(S::TN, left - c.first), 0);
    return c;
}

/* --- producers --- */

/* Stages of a remote tier that a group of row tiles may have in flight: its part of the window,
 * where as many groups are read at a time as remote rows are a share of all. */
template <class S> PTX_INLINE int32_t cu_prefill_reach(const cu_prefill &p, int32_t tier)
{
    const kn_cu_window w = p.gemm.windows[tier];
    const int32_t blocks = min(max(w.ctas, 1), 1024) * min(max(w.blocks, 1), 1024),
                  remote = p.remote_before + p.remote_after,
                  groups = (int32_t)gridDim.x / S::CTAS * S::CR,
                  readers = (groups * remote + p.row_sets - 1) / p.row_sets;
    return max(blocks * 2 / S::RT / readers, 1);
}

template <class S> PTX_INLINE void cu_prefill_weights(const cu_prefill &p, cu_prefill_ring<S> &ring)
{
    const cu_gemm &g = p.gemm;
    const int32_t rank = blockIdx.x % S::CTAS;
    const uint16_t row = ((1 << S::CT) - 1) << (rank / S::CT * S::CT);
    uint32_t local_blocks = 0;
    int32_t n = 0;
    cu_ring_place at;
    at.parity = 1; /* an empty ring lets the first pass through */
    CU_PREFILL_TILES(S, p, tile)
    {
        const uint8_t *from[S::RT];
        int32_t remote = 0, present = 0, reach = S::STAGES;
#pragma unroll
        for (int t = 0; t < S::RT; t++) {
            const int32_t w = tile.group * S::RT + t;
            const int32_t tier = cu_gemm_tile_tier(g, w);
            const cu_gemm_tier &in = g.tier[max(tier, 0)];
            from[t] = tier < 0
                          ? nullptr
                          : in.base +
                                (size_t)(w - in.tile_begin) * g.blocks_per_tile * KN_BLOCK_BYTES +
                                tile.first_stage * KN_ATOM_BYTES;
            present += tier >= 0;
            if (tier > 0 && g.windows) {
                remote |= 1 << t;
                reach = min(reach, cu_prefill_reach<S>(p, tier));
            }
            if (g.traffic && tier >= 0 && rank % S::CT == 0) {
                /* A unit cut within a block counts it where it ends. */
                const uint32_t blocks = (tile.first_stage + tile.stages) / 2 - tile.first_stage / 2;
                if (tier == 0 || !g.windows) local_blocks += blocks;
                else ptx_atomic_add_relaxed_u64(&g.traffic[tier].blocks, blocks);
            }
        }
        for (int32_t s = 0; s < tile.stages; s++, n++, cu_ring_step<S::STAGES>(at)) {
            ptx_mbarrier_wait(&ring.empty[at.slot], at.parity);
            if (reach < S::STAGES && n >= reach)
                ptx_mbarrier_wait(&ring.full[(n - reach) % S::STAGES], (n - reach) / S::STAGES & 1);
            if (g.windows) {
                bool mine = false;
#pragma unroll
                for (int t = 0; t < S::RT; t++)
                    mine |= (remote >> t & 1) && (n * S::RT + t) % S::CT == rank % S::CT;
                ring.issue_clock[at.slot] = mine ? ptx_clock() | 1 : 0;
            }
            if (present) ptx_mbarrier_expect_tx(&ring.full[at.slot], present * KN_ATOM_BYTES);
            else ptx_mbarrier_arrive(&ring.full[at.slot]);
#pragma unroll
            for (int t = 0; t < S::RT; t++) {
                if (!from[t] || (n * S::RT + t) % S::CT != rank % S::CT) continue;
                uint8_t *to = ring.w[at.slot] + t * KN_ATOM_BYTES;
                const uint8_t *source = from[t] + (size_t)s * KN_ATOM_BYTES;
                if (S::CT == 1) ptx_bulk_load(to, source, KN_ATOM_BYTES, &ring.full[at.slot]);
                else ptx_bulk_load_multicast(to, source, KN_ATOM_BYTES, &ring.full[at.slot], row);
            }
        }
    }
    /* Peers arrive at the barriers of this CTA: it stays until all have. */
    for (int s = 0; s < S::STAGES; s++, cu_ring_step<S::STAGES>(at))
        ptx_mbarrier_wait(&ring.empty[at.slot], at.parity);
    if (local_blocks) ptx_atomic_add_relaxed_u64(&g.traffic[0].blocks, local_blocks);
}

/* The same by plain loads, of a whole warp, where no weights are shared (loads_prefill.cu). */
template <class S>
PTX_INLINE void cu_prefill_load_weights(const cu_prefill &p, cu_prefill_ring<S> &ring, int lane);

template <class S>
PTX_INLINE void cu_prefill_activations(const cu_prefill &p, cu_prefill_ring<S> &ring)
{
    const cu_gemm &g = p.gemm;
    const int32_t rank = blockIdx.x % S::CTAS, share = rank / S::CT;
    uint16_t column = 0;
    for (int r = 0; r < S::CR; r++) column |= 1 << (r * S::CT + rank % S::CT);
    const size_t chunk_bytes = (size_t)g.blocks_per_tile * KN_CU_TOKENS_MAX * 256;
    ptx_griddep_wait();
    cu_ring_place at;
    at.parity = 1;
    CU_PREFILL_TILES(S, p, tile)
    {
        const cu_prefill_chunk c = cu_prefill_chunk_of<S>(g, tile.token_tile);
        const uint32_t bytes = c.tokens ? min(S::TN, c.bucket - c.first) * KN_ATOM_ROW_BYTES : 0,
                       part = bytes / S::CR;
        const uint8_t *from = g.x + c.index * chunk_bytes + c.first * KN_ATOM_ROW_BYTES +
                              (size_t)tile.first_stage * c.bucket * KN_ATOM_ROW_BYTES;
        for (int32_t s = 0; s < tile.stages; s++, cu_ring_step<S::STAGES>(at)) {
            ptx_mbarrier_wait(&ring.empty[at.slot], at.parity);
            if (!bytes) {
                ptx_mbarrier_arrive(&ring.full[at.slot]);
                continue;
            }
            ptx_mbarrier_expect_tx(&ring.full[at.slot], bytes);
            uint8_t *to = ring.x[at.slot] + share * part;
            const uint8_t *source = from + share * part;
            if (S::CR == 1) ptx_bulk_load(to, source, part, &ring.full[at.slot]);
            else ptx_bulk_load_multicast(to, source, part, &ring.full[at.slot], column);
            from += c.bucket * KN_ATOM_ROW_BYTES;
        }
    }
}

/* Sees every stage land, as one more of its consumers, so that it misses none. */
template <class S> PTX_INLINE void cu_prefill_watch(const cu_prefill &p, cu_prefill_ring<S> &ring)
{
    const cu_gemm &g = p.gemm;
    cu_ring_place at;
    CU_PREFILL_TILES(S, p, tile)
    {
        int32_t tier = 0;
#pragma unroll
        for (int t = 0; t < S::RT; t++)
            tier = max(tier, cu_gemm_tile_tier(g, tile.group * S::RT + t));
        uint32_t trips = 0, trip_min = UINT32_MAX, trip_max = 0;
        uint64_t clocks = 0;
        for (int32_t s = 0; s < tile.stages; s++, cu_ring_step<S::STAGES>(at)) {
            PTX_SPIN_UNTIL(ptx_mbarrier_test_wait(&ring.full[at.slot], at.parity));
            const uint32_t now = ptx_clock();
            const uint32_t issued = *(volatile uint32_t *)&ring.issue_clock[at.slot];
            ptx_mbarrier_arrive(&ring.empty[at.slot]);
            if (!issued) continue;
            trips++;
            clocks += now - issued;
            trip_min = min(trip_min, now - issued);
            trip_max = max(trip_max, now - issued);
        }
        cu_count_trips(g.traffic, tier, trips, clocks, trip_min, trip_max);
    }
}

/* --- consumers --- */

/* Where a lane says that its warp has done with slot 0: one lane for each CTA that shares copies
 * with this one, its own first.  0: nowhere. */
template <class S> PTX_INLINE uint32_t cu_prefill_release_at(cu_prefill_ring<S> &ring, int lane)
{
    const uint32_t here = ptx_shared(&ring.empty[0]);
    if (S::PEERS == 1) return lane == 0 ? here : 0;
    const int rank = blockIdx.x % S::CTAS, row = rank / S::CT, column = rank % S::CT;
    if (lane >= S::PEERS) return 0;
    if (lane < S::CT) return ptx_mapa(here, row * S::CT + lane);
    const int other = lane - S::CT;
    return ptx_mapa(here, (other + (other >= row)) * S::CT + column);
}

template <class S> PTX_INLINE void cu_prefill_release(uint32_t at, int32_t slot)
{
    if (at) ptx_mbarrier_arrive_cluster(at + slot * (uint32_t)sizeof(uint64_t));
}

/* --- turns ---
 *
 * A warpgroup begins with its tile when the other has seen the last stage of the one before land:
 * by then no filling of a slot is ahead of the one it waits for but those it need not wait for. */

template <class S> PTX_INLINE void cu_prefill_turn(int32_t n, int wg)
{
    if (S::TURNS > 1 && n > 0) ptx_bar_sync(CU_PREFILL_TURN + wg, 256);
}

template <class S> PTX_INLINE void cu_prefill_turn_over(const cu_prefill_tile &tile, int wg)
{
    if (S::TURNS > 1 && !tile.last) ptx_bar_arrive(CU_PREFILL_TURN + (wg ^ 1), 256);
}

/* Passes over the stages of a tile that is the other warpgroup's. */
template <int SLOTS> PTX_INLINE void cu_ring_skip(cu_ring_place &p, int32_t stages)
{
    p.slot += stages;
    p.parity ^= p.slot / SLOTS & 1;
    p.slot %= SLOTS;
}

/* A unit that this warpgroup has no rows or no tokens of. */
template <class S>
PTX_INLINE void cu_prefill_pass(cu_prefill_ring<S> &ring, const cu_prefill_tile &tile,
                                cu_ring_place &at, int wg, uint32_t release_at)
{
    for (int32_t s = 0; s < tile.stages; s++, cu_ring_step<S::STAGES>(at)) {
        ptx_mbarrier_wait(&ring.full[at.slot], at.parity);
        cu_prefill_release<S>(release_at, at.slot);
    }
    cu_prefill_turn_over<S>(tile, wg);
}

/* The next stage's products are issued before the last one's are waited for. */
template <class S>
PTX_INLINE void cu_prefill_multiply(float (&acc)[S::TN / 2], cu_prefill_ring<S> &ring,
                                    const cu_prefill_tile &tile, cu_ring_place &at, int wg,
                                    uint32_t release_at)
{
    const int row = wg % S::RT;
    int32_t old = 0;
    ptx_wgmma_registers(acc);
    for (int32_t s = 0; s < tile.stages; s++) {
        ptx_mbarrier_wait(&ring.full[at.slot], at.parity);
        const uint64_t wd = ptx_wgmma_descriptor(ptx_shared(ring.w[at.slot]) + row * KN_ATOM_BYTES);
        const uint64_t xd = ptx_wgmma_descriptor(ptx_shared(ring.x[at.slot]));
        ptx_wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) ptx_wgmma<S::TN>(acc, wd + 2 * k, xd + 2 * k, true);
        ptx_wgmma_commit();
        ptx_wgmma_wait<1>();
        if (s > 0) cu_prefill_release<S>(release_at, old);
        old = at.slot;
        cu_ring_step<S::STAGES>(at);
    }
    cu_prefill_turn_over<S>(tile, wg);
    ptx_wgmma_wait<0>();
    cu_prefill_release<S>(release_at, old);
}

/* --- the epilogue ---
 *
 * A round fills one of the warpgroup's two buffers; who has passed the barrier of a round has read
 * the buffer of the round before.  A warpgroup that has its turn has time, and one buffer. */

struct cu_prefill_place {
    int32_t tile; /* row tile */
    int32_t part; /* of K */
    cu_prefill_chunk chunk;
    uint32_t wg, row; /* the warpgroup, and its row tile of the group */
    uint32_t thread;  /* of the warpgroup */
    float (*staging)[CU_PREFILL_STAGING / 4];
};

/* The buffer of a round; with one alone, its last readers must have read. */
template <class S> PTX_INLINE float *cu_prefill_buffer(const cu_prefill_place &at, int32_t round)
{
    if (S::BUFFERS == 1) ptx_bar_sync(1 + at.wg, 128);
    return at.staging[S::BUFFERS == 1 ? 0 : round & 1];
}

/* Four rows of a token, from row r of the weight on. */
PTX_INLINE void cu_prefill_put(const cu_gemm &g, float *to, float4 v, int32_t r, bool whole)
{
    const bool add = g.epilogue == KN_EPI_ADD && !g.partial;
    if (whole && add) {
        ptx_red_add_v4_f32(to, v);
    } else if (whole) {
        *(float4 *)to = v;
    } else {
        const float *f = &v.x;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (r + i >= g.rows) continue;
            if (add) ptx_red_add_f32(&to[i], f[i]);
            else to[i] = f[i];
        }
    }
}

/* STORE, F32, ADD and parts: 32 tokens x 64 rows a round, placed as cu_stage_at says. */
template <class S>
PTX_INLINE void cu_prefill_store_floats(const cu_gemm &g, const float (&acc)[S::TN / 2],
                                        const cu_prefill_place &at)
{
    const uint32_t lane = at.thread & 31, pair = lane & 3,
                   writes = pair * 128 + ((at.thread / 32 * 16 + lane / 4) ^ pair << 3);
    const uint32_t first = at.thread / 16, row = at.thread % 16 * 4,
                   reads = first * 64 + (row ^ (first >> 1 & 3) << 3 ^ (first & 1) << 2);
    const int32_t r = at.tile * 64 + row;
    float *base = g.partial ? g.partial + (size_t)at.part * g.tokens * g.rows : (float *)g.out;
    float *out =
        base + r + (size_t)(at.chunk.index * KN_CU_TOKENS_MAX + at.chunk.first + first) * g.rows;
    const bool whole = r + 3 < g.rows && g.rows % 4 == 0 && ((uintptr_t)base & 15) == 0;
#pragma unroll 1
    for (int32_t round = 0; round * 32 < at.chunk.tokens; round++) {
        float *buffer = cu_prefill_buffer<S>(at, round);
#pragma unroll
        for (int c = 0; c < S::TN / 32; c++) {
            if (c != round) continue;
#pragma unroll
            for (int i = 0; i < 16; i++)
                buffer[i / 4 * 512 + (((writes + (i & 1) * 64) ^ (i & 1) << 2) ^ (i & 2) << 2)] =
                    acc[16 * c + i];
        }
        ptx_bar_sync(1 + at.wg, 128);
#pragma unroll
        for (int j = 0; j < 4; j++, out += (size_t)8 * g.rows)
            if (round * 32 + 8 * j + (int32_t)first < at.chunk.tokens)
                cu_prefill_put(g, out, *(const float4 *)&buffer[reads + 512 * j], r, whole);
    }
}

PTX_INLINE uint32_t cu_prefill_pack(float first, float second)
{
    const __nv_bfloat162 b = __floats2bfloat162_rn(first, second);
    return *(const uint32_t *)&b;
}

/* Byte of 16-byte chunk `chunk` of a token in a buffer of CHUNKS chunks a token: neither 8 tokens
 * of a chunk nor the chunks of a token meet a bank twice. */
template <int CHUNKS> PTX_INLINE uint32_t cu_prefill_chunk_at(uint32_t token, uint32_t chunk)
{
    const uint32_t key = CHUNKS == 4 ? token >> 1 & 3 : token & 7;
    return token * CHUNKS * 16 + ((chunk ^ key) << 4);
}

/* Of 32 tokens: the activations of a warp's 16 rows.  SWIGLU: of 16 rows the first 8 are gates and
 * the others their ups (kn_glu_row), so 4 chunks of 8 make a tile; RELU: 8 chunks. */
template <int CHUNKS>
PTX_INLINE void cu_prefill_write_act(const float *acc, uint32_t buffer, uint32_t tokens_at,
                                     uint32_t warp, uint32_t lane)
{
    uint32_t first[4];
    uint32_t second[4];
#pragma unroll
    for (int m = 0; m < 4; m++) {
        const float *v = acc + 4 * m;
        if (CHUNKS == 4) {
            first[m] = cu_prefill_pack(cu_swiglu(v[0], v[2]), cu_swiglu(v[1], v[3]));
        } else {
            first[m] = cu_prefill_pack(fmaxf(v[0], 0.f), fmaxf(v[1], 0.f));
            second[m] = cu_prefill_pack(fmaxf(v[2], 0.f), fmaxf(v[3], 0.f));
        }
    }
    const uint32_t token = tokens_at + lane, chunk = CHUNKS == 4 ? warp : 2 * warp;
    ptx_stmatrix_x4_trans(buffer + cu_prefill_chunk_at<CHUNKS>(token, chunk), first);
    if (CHUNKS == 8)
        ptx_stmatrix_x4_trans(buffer + cu_prefill_chunk_at<CHUNKS>(token, chunk + 1), second);
}

/* SWIGLU and RELU: 128 or 64 tokens a round.  The last tile also clears what the next GEMM's last
 * block reads beyond the columns. */
template <class S, int CHUNKS>
PTX_INLINE void cu_prefill_store_act(const cu_gemm &g, const float (&acc)[S::TN / 2],
                                     const cu_prefill_place &at)
{
    constexpr int ROUND = CU_PREFILL_STAGING / (CHUNKS * 16);
    const int32_t cols = g.tile_count * CHUNKS * 8, first = at.chunk.first,
                  bucket = at.chunk.bucket;
    uint8_t *out =
        (uint8_t *)g.out + (size_t)at.chunk.index * ((cols + 127) / 128) * KN_CU_TOKENS_MAX * 256;
#pragma unroll
    for (int round = 0; round < S::TN / ROUND; round++) {
        const uint8_t *staged = (const uint8_t *)cu_prefill_buffer<S>(at, round);
        const uint32_t buffer = ptx_shared(staged);
#pragma unroll
        for (int q = 0; q < ROUND / 32; q++)
            cu_prefill_write_act<CHUNKS>(&acc[(round * ROUND + q * 32) / 2], buffer, q * 32,
                                         at.thread / 32, at.thread % 32);
        ptx_bar_sync(1 + at.wg, 128);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t token = at.thread / CHUNKS + 128 / CHUNKS * j,
                           chunk = at.thread % CHUNKS;
            const int32_t t = round * ROUND + (int32_t)token;
            if (t >= at.chunk.tokens) continue;
            *(uint4 *)(out + kn_cu_act_offset(bucket, first + t, (at.tile * CHUNKS + chunk) * 8)) =
                *(const uint4 *)(staged + cu_prefill_chunk_at<CHUNKS>(token, chunk));
        }
    }
    if (at.tile < g.tile_count - 1) return;
    for (int32_t t = (int32_t)at.thread; t < at.chunk.tokens; t += 128)
        for (int32_t k = cols; k < ((cols + 127) & ~127); k += 8)
            *(uint4 *)(out + kn_cu_act_offset(bucket, first + t, k)) = make_uint4(0, 0, 0, 0);
}

template <int TN>
PTX_INLINE void cu_prefill_bias(const cu_gemm &g, float (&acc)[TN / 2], const cu_prefill_place &at)
{
    const int32_t r = at.tile * 64 + at.thread / 32 * 16 + at.thread % 32 / 4;
    const float bias[2] = {r < g.rows ? g.bias[r] : 0.f, r + 8 < g.rows ? g.bias[r + 8] : 0.f};
#pragma unroll
    for (int i = 0; i < TN / 2; i++) acc[i] += bias[i >> 1 & 1];
}

/* --- units that change hands ---
 *
 * The sums of a warpgroup, as its threads hold them. */

template <class S>
PTX_INLINE void cu_prefill_give(const cu_prefill &p, const float (&acc)[S::TN / 2],
                                const cu_prefill_place &at)
{
    const uint32_t place = blockIdx.x * S::RT + at.row;
    float4 *to = p.handover + (size_t)place * (S::TN * 16) + at.thread;
#pragma unroll
    for (int i = 0; i < S::TN / 8; i++)
        ptx_store_relaxed_v4(&to[i * 128], make_uint4(__float_as_uint(acc[4 * i]),
                                                      __float_as_uint(acc[4 * i + 1]),
                                                      __float_as_uint(acc[4 * i + 2]),
                                                      __float_as_uint(acc[4 * i + 3])));
    ptx_bar_sync(1 + at.wg, 128);
    if (at.thread == 0) ptx_atomic_add_acq_rel(&p.handed[place], 1);
}

template <class S>
PTX_INLINE void cu_prefill_take(const cu_prefill &p, float (&acc)[S::TN / 2],
                                const cu_prefill_place &at)
{
    const uint32_t place = (blockIdx.x + S::CTAS * p.abreast) * S::RT + at.row;
    const float4 *from = p.handover + (size_t)place * (S::TN * 16) + at.thread;
    if (at.thread == 0) {
        PTX_SPIN_UNTIL(ptx_atomic_add_acq_rel(&p.handed[place], 0) == 1);
        ptx_atomic_add_relaxed(&p.handed[place], UINT32_MAX);
    }
    ptx_bar_sync(1 + at.wg, 128);
#pragma unroll
    for (int i = 0; i < S::TN / 8; i++) {
        const uint4 v = ptx_load_relaxed_v4(&from[i * 128]);
        acc[4 * i] = __uint_as_float(v.x), acc[4 * i + 1] = __uint_as_float(v.y);
        acc[4 * i + 2] = __uint_as_float(v.z), acc[4 * i + 3] = __uint_as_float(v.w);
    }
}

template <class S>
PTX_INLINE void cu_prefill_consume(const cu_prefill &p, cu_prefill_ring<S> &ring, int warp,
                                   int lane)
{
    /* The epilogue touches what the previous kernel wrote and read, so every consumer waits. */
    ptx_griddep_wait();
    const cu_gemm &g = p.gemm;
    const int wg = warp / 4;
    const uint32_t release_at = cu_prefill_release_at<S>(ring, lane);
    cu_ring_place at;
    CU_PREFILL_TILES(S, p, tile)
    {
        if (S::TURNS > 1 && (tile_n & 1) != wg) {
            cu_ring_skip<S::STAGES>(at, tile.stages);
            continue;
        }
        cu_prefill_tile next;
        tile.last = S::TURNS > 1 && !cu_prefill_next<S>(p, tile_n + 1, &next);
        cu_prefill_place o;
        o.wg = wg;
        o.row = wg % S::RT;
        o.tile = tile.group * S::RT + o.row;
        o.part = tile.part;
        o.chunk = cu_prefill_chunk_of<S>(g, tile.token_tile);
        o.thread = ptx_opaque(warp % 4 * 32 + lane) & 127;
        o.staging = ring.staging[wg];
        if (o.tile >= g.tile_count || o.chunk.tokens == 0) {
            cu_prefill_turn<S>(tile_n, wg);
            cu_prefill_pass<S>(ring, tile, at, wg, release_at);
            continue;
        }
        float acc[S::TN / 2] = {};
        if (tile.takes) cu_prefill_take<S>(p, acc, o);
        cu_prefill_turn<S>(tile_n, wg);
        cu_prefill_multiply<S>(acc, ring, tile, at, wg, release_at);
        if (tile.gives) {
            cu_prefill_give<S>(p, acc, o);
            continue;
        }
        if (g.bias && !g.partial) cu_prefill_bias<S::TN>(g, acc, o);
        if (S::BUFFERS > 1) ptx_bar_sync(1 + wg, 128); /* the buffers' last readers have read */
        if (g.epilogue == KN_EPI_SWIGLU) cu_prefill_store_act<S, 4>(g, acc, o);
        else if (g.epilogue == KN_EPI_RELU) cu_prefill_store_act<S, 8>(g, acc, o);
        else cu_prefill_store_floats<S>(g, acc, o);
    }
}

/* LOADS: remote weights by plain loads. */
template <class S, bool LOADS = false>
__global__ void __launch_bounds__(S::THREADS, 1)
    sm90_bf16_prefill_gemm(const __grid_constant__ cu_prefill p)
{
    CU_TRACE(GEMM, p.gemm.tile_count << 12 | p.gemm.blocks_per_tile);
    extern __shared__ __align__(1024) uint8_t shared[];
    cu_prefill_ring<S> &ring = *(cu_prefill_ring<S> *)shared;
    static_assert(sizeof(cu_prefill_ring<S>) <= S::SHARED_USED, "the ring outgrew its memory");
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0), lane = threadIdx.x & 31;
    ptx_griddep_launch();
    if (threadIdx.x == 0) {
        if (ptx_shared(shared) & 1023) __trap(); /* the swizzle counts from 1 KB boundaries */
        for (int s = 0; s < S::STAGES; s++) {
            ptx_mbarrier_init(&ring.full[s], 1 + (LOADS ? CU_ARRIVALS : 1));
            ptx_mbarrier_init(&ring.empty[s], S::PEERS * S::WARPS + (p.gemm.windows ? 1 : 0));
        }
        ptx_fence_mbarrier_init();
    }
    __syncthreads();
    if (S::CTAS > 1) ptx_cluster_sync_relaxed();
    if (warp < S::WGS * 4) {
        ptx_setmaxnreg_inc<S::CONSUMER_REGISTERS>();
        CU_TRACE_WAITED();
        cu_prefill_consume<S>(p, ring, warp, lane);
    } else {
        ptx_setmaxnreg_dec<S::PRODUCER_REGISTERS>();
        if constexpr (LOADS)
            if (warp == S::WGS * 4) cu_prefill_load_weights<S>(p, ring, lane);
        if (lane == 0) {
            if (!LOADS && warp == S::WGS * 4) cu_prefill_weights<S>(p, ring);
            if (warp == S::WGS * 4 + 1) cu_prefill_activations<S>(p, ring);
            if (warp == S::WGS * 4 + 2 && p.gemm.windows) cu_prefill_watch<S>(p, ring);
        }
    }
}

#endif
