# dakd: one non-recursive Makefile.
#
#   make            build/dakd, optimised          make DEBUG=1          build/debug/dakd
#   make demo       set up, build, one chat answer make SAN=address,undefined | SAN=thread
#   make test       set up, build, every test that needs no GPU
#   make gpu        what runs on a GPU      make TRACE=1 gpu   the same, kernels writing down times
#   make soak       a daemon under everything that clients do, for 21 minutes: SOAK="--seconds 60"
#
# Sources and tests are found by wildcard; each build flavour has its own directory.  CUDA sources
# (kernels/cuda/*.cu) are compiled for sm_90a when nvcc is on the PATH and left out otherwise.

empty :=
comma := ,
space := $(empty) $(empty)

FLAVOUR := $(if $(SAN),san-$(subst $(comma),-,$(SAN)),$(if $(DEBUG),debug,$(if $(TRACE),trace)))
OUT     := build$(if $(FLAVOUR),/$(FLAVOUR))
OBJ     := $(OUT)/obj

VERSION := 0.1.0
GIT_COMMIT := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)

PREFIX  ?= /usr/local
DESTDIR ?=

CC      ?= gcc
# V=1 shows the commands.
Q       := $(if $(V),,@)
say      = $(if $(V),:,echo '  $(1)  $(2)')
LLHTTP  ?= /usr/share/llhttp
LLHTTP_INCLUDE ?= /usr/share/include/llhttp

WARN    := -Wall -Wextra -Werror -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes \
           -Wpointer-arith -Wwrite-strings -Wundef -Wformat=2
CPPFLAGS_ALL := -I. -I$(LLHTTP_INCLUDE) -D_GNU_SOURCE -DPCRE2_CODE_UNIT_WIDTH=8 \
           -DLLHTTP_STRICT_MODE=1 $(if $(DEBUG)$(SAN),-DDAKD_DEBUG) $(if $(TRACE),-DDAKD_TRACE) \
           $(CPPFLAGS)
CFLAGS_ALL := -std=c17 -g -pthread -fno-math-errno -ffp-contract=off $(WARN) \
           $(if $(DEBUG),-O0,$(if $(SAN),-O1 -fno-omit-frame-pointer,-O2)) \
           $(if $(SAN),-fsanitize=$(SAN) -fno-sanitize-recover=all) $(CFLAGS)
LDFLAGS_ALL := -pthread $(if $(SAN),-fsanitize=$(SAN)) $(LDFLAGS)
# jemalloc is the allocator; the sanitizers bring their own.
LDLIBS  := -luv -lcjson -lpcre2-8 -lutf8proc $(if $(SAN),,-ljemalloc) -lm -ldl -lrt

SRC     := $(wildcard config/*.c kernels/*.c kernels/cpu/*.c offload/*.c engine/*.c server/*.c)
LIB_OBJ := $(patsubst %.c,$(OBJ)/%.o,$(filter-out server/main.c,$(SRC))) \
           $(OBJ)/llhttp/api.o $(OBJ)/llhttp/http.o $(OBJ)/llhttp/llhttp.o
LIB     := $(OUT)/libdakd.a

NVCC    := $(shell command -v nvcc 2>/dev/null)
CU_SRC  := $(wildcard kernels/cuda/*.cu)
ifneq ($(NVCC),)
ifneq ($(CU_SRC),)
CUDA_HOME := $(dir $(NVCC))..
CUDA_LIBDIR := $(CUDA_HOME)/lib64
CPPFLAGS_ALL += -DDAKD_CUDA=1 -isystem $(CUDA_HOME)/include
NVCCFLAGS := -std=c++17 -O3 -I. -gencode=arch=compute_90a,code=sm_90a -Xcompiler -Wall,-Wextra \
           -Werror all-warnings -lineinfo $(if $(DEBUG),-DDAKD_DEBUG) $(if $(TRACE),-DDAKD_TRACE)
LIB_OBJ += $(patsubst %.cu,$(OBJ)/%.cu.o,$(CU_SRC)) \
           $(patsubst %.c,$(OBJ)/%.o,$(wildcard kernels/cuda/*.c))
LDLIBS  += -L$(CUDA_LIBDIR) -lcudart_static -lstdc++ -ldl -lrt
endif
endif

TEST_SRC := $(wildcard tests/unit_*.c tests/sim_*.c tests/fuzz_*.c tests/fault_*.c)
TEST_BIN := $(patsubst tests/%.c,$(OUT)/tests/%,$(TEST_SRC))
TOOL_BIN := $(patsubst tests/%.c,$(OUT)/tests/%,$(wildcard tests/tool_*.c))

.PHONY: all tests demo run test soak setup install clean cuda-note gpu gpu-test gpu-bench gpu-quick gpu-profile
.DEFAULT_GOAL := all

all: cuda-note $(OUT)/dakd

cuda-note:
	@$(if $(NVCC),:,echo "nvcc not found: building the CPU backend alone")

tests: cuda-note $(OUT)/dakd $(TEST_BIN) $(TOOL_BIN)

$(OUT)/dakd: $(OBJ)/server/main.o $(LIB)
	@$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LDLIBS)

$(LIB): $(LIB_OBJ)
	@rm -f $@
	@$(call say,AR,$@)
	$(Q)ar rcs $@ $^

$(OBJ)/%.o: %.c Makefile
	@mkdir -p $(@D)
	@$(call say,CC,$<)
	$(Q)$(CC) $(CPPFLAGS_ALL) $(CFLAGS_ALL) -MMD -MP -c -o $@ $<

# The commit is known to one file, rebuilt when it changes.
$(OBJ)/config/version.o: CPPFLAGS_ALL += -DDAKD_VERSION='"$(VERSION)"' -DDAKD_COMMIT='"$(GIT_COMMIT)"'
$(OBJ)/config/version.o: $(OBJ)/commit
$(OBJ)/commit: FORCE
	@mkdir -p $(@D)
	@echo '$(VERSION) $(GIT_COMMIT)' | cmp -s - $@ || echo '$(VERSION) $(GIT_COMMIT)' > $@
FORCE:

# The reference kernels are the CPU backend: let the compiler vectorise what has no hand-written form.
$(OBJ)/kernels/%.o: CFLAGS_ALL += $(if $(DEBUG)$(SAN),,-O3)

$(OBJ)/llhttp/%.o: $(LLHTTP)/%.c Makefile
	@mkdir -p $(@D)
	@$(call say,CC,$<)
	$(Q)$(CC) $(CPPFLAGS_ALL) -std=c17 -O2 -g $(if $(SAN),-fsanitize=$(SAN)) -w -c -o $@ $<

$(OBJ)/%.cu.o: %.cu Makefile
	@mkdir -p $(@D)
	@$(call say,NVCC,$<)
	$(Q)$(NVCC) $(NVCCFLAGS) -MMD -MP -c -o $@ $<

$(OUT)/tests/%: $(OBJ)/tests/%.o $(LIB)
	@mkdir -p $(@D)
	@$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ -lcmocka $(LDLIBS)

# Tests and benchmarks of the GPU are built here, with nvcc, and run by scripts/gpu.sh on a machine
# with a GPU, where nothing need be installed: build/gpu holds the programs and the libraries they need.
GPU_SRC := $(wildcard tests/gpu_*.c tests/gpu_*.cu)
GPU_BIN := $(patsubst tests/%,$(OUT)/gpu/%,$(basename $(GPU_SRC)))

ifeq ($(NVCC),)
gpu:
	@echo "nvcc not found: the GPU's tests and benchmarks cannot be built" >&2; exit 1
else
gpu: $(OUT)/gpu/dakd $(GPU_BIN)
	@mkdir -p $(OUT)/gpu/lib
	@ldd $^ | awk '$$2 == "=>" { print $$3 }' | sort -u | \
	  grep -Ev '/lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+)\.so' | xargs cp -Lt $(OUT)/gpu/lib
	@echo '$(GIT_COMMIT)$(shell git diff --quiet HEAD 2>/dev/null || echo +)' > $(OUT)/gpu/commit
endif

gpu-test gpu-bench: gpu-%: gpu
	@scripts/gpu.sh $* $(OUT)/gpu

gpu-quick:
	@$(MAKE) --no-print-directory DEBUG=1 gpu
	@scripts/gpu.sh quick build/debug/gpu
gpu-profile:
	@$(MAKE) --no-print-directory TRACE=1 gpu
	@scripts/gpu.sh profile build/trace/gpu

$(OUT)/gpu/dakd: $(OUT)/dakd
	@mkdir -p $(@D)
	@cp $< $@

$(OUT)/gpu/%: $(OBJ)/tests/%.o $(LIB)
	@mkdir -p $(@D)
	@$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LDLIBS)

$(OUT)/gpu/%: $(OBJ)/tests/%.cu.o $(LIB)
	@mkdir -p $(@D)
	@$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LDLIBS)

setup:
	@scripts/setup.sh

demo: setup
	@$(MAKE) --no-print-directory -j$$(nproc) all
	@scripts/demo.sh $(OUT)/dakd

run: setup
	@$(MAKE) --no-print-directory -j$$(nproc) all
	$(OUT)/dakd serve config/demo-model

test: setup
	@scripts/test.sh

# The sanitizer keeps what was freed for a while, which is not a leak.
soak: all
	@ASAN_OPTIONS=detect_leaks=1:quarantine_size_mb=16 python3 scripts/soak.py $(OUT)/dakd \
	  config/demo-model $(or $(SOAK),--seconds 1260)

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/systemd/system \
	  $(DESTDIR)$(PREFIX)/share/dakd $(DESTDIR)/etc/dakd
	install -m 0755 $(OUT)/dakd $(DESTDIR)$(PREFIX)/bin/dakd
	sed 's|@PREFIX@|$(PREFIX)|g' config/dakd@.service \
	  > $(DESTDIR)$(PREFIX)/lib/systemd/system/dakd@.service
	chmod 0644 $(DESTDIR)$(PREFIX)/lib/systemd/system/dakd@.service
	cp -r config/demo-model config/models $(DESTDIR)$(PREFIX)/share/dakd/
	[ -e $(DESTDIR)/etc/dakd/demo.json ] || \
	  sed 's|@PREFIX@|$(PREFIX)|g' config/demo.json > $(DESTDIR)/etc/dakd/demo.json

clean:
	rm -rf build

-include $(wildcard $(OBJ)/*/*.d $(OBJ)/*/*/*.d)
