# Every target sets itself up from a fresh clone; the second time is quick.
# Needs Python 3.10 or newer, make and a C compiler. `make PYTHON=python3.12 venv` picks another Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

CXX_SOURCES := $(shell find native/opencl_runtime -name '*.cc' -o -name '*.h')

# What is needed beyond PyPI, as Debian and Ubuntu name it; `make test` installs it where it may.
# An emulated Arm board: tvm_mobilenet/boards/sysroot.py looks for the same.
EMULATOR := qemu-user libc6-arm64-cross libstdc++6-arm64-cross
ARM_LIBRARIES := /usr/aarch64-linux-gnu/lib
# What opens a report in its tests.
BROWSER := chromium
# What the OpenCL runtime is built with, for this machine and a board, and a device for any processor.
OPENCL := g++ g++-aarch64-linux-gnu opencl-c-headers ocl-icd-libopencl1 pocl-opencl-icd

# $(call apt_install,PACKAGES,WHAT IS MISSING WITHOUT THEM): with apt where that is allowed, else says so.
define apt_install
if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
  echo "installing $(1)" >&2; \
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends $(1) >/dev/null && exit 0; \
fi; \
echo "no $(2) here: install $(1); without it its tests are skipped" >&2
endef

.PHONY: help venv emulator browser opencl opencl-arm opencl-intel run test test-slow lint format bench bench-families logs-arm logs-arm-int8 logs-avx512 logs-zen3 clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: $(STAMP)  ## make .venv with the project, its tools and the benchmark's peers

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is older than Python 3.10; name a newer one: make PYTHON=python3.12 $@" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment; install its venv module" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	@touch $@

run: $(STAMP)  ## train on digits, export, compile, verify and measure
	$(BIN)/tvm-mobilenet run

emulator:  ## install what an emulated Arm board needs, with apt
	@if command -v qemu-aarch64 >/dev/null && test -e $(ARM_LIBRARIES)/ld-linux-aarch64.so.1 && \
	    test -e $(ARM_LIBRARIES)/libstdc++.so.6; then exit 0; fi; \
	$(call apt_install,$(EMULATOR),emulated Arm board)

browser:  ## install what looks at a report in its tests, with apt
	@if command -v chromium >/dev/null || command -v chromium-browser >/dev/null; then exit 0; fi; \
	$(call apt_install,$(BROWSER),browser)

opencl:  ## install an OpenCL device that is this processor, with apt
	@if test -e /usr/include/CL/cl.h && ls /etc/OpenCL/vendors/*.icd >/dev/null 2>&1 && \
	    command -v g++ >/dev/null && command -v aarch64-linux-gnu-g++ >/dev/null; then exit 0; fi; \
	$(call apt_install,$(OPENCL),OpenCL device)

# Another vendor's driver, with half precision, for the tests that are skipped without it: 0.8 GB, and so
# in an environment of its own. The pins are what those tests were passed with.
INTEL := build/opencl-intel
INTEL_PACKAGES := intel-opencl-rt==2026.2.0 intel-cmplr-lib-rt==2026.2.0
opencl-intel: $(STAMP)  ## install Intel's OpenCL driver for processors, from PyPI, for some tests
	@test -e $(INTEL)/lib/libintelocl.so || { $(BIN)/python -m venv $(INTEL) && \
	  $(INTEL)/bin/python -m pip install --quiet --disable-pip-version-check $(INTEL_PACKAGES); }

opencl-arm: emulator opencl  ## fetch an OpenCL device for emulated Arm boards, from Debian, for some tests
	@tests/boards/pocl_arm64.sh build/pocl-arm64

test: lint emulator browser opencl  ## lint, types and the tests
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-slow: $(STAMP) emulator opencl  ## the long tests
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

lint: $(STAMP)  ## ruff, mypy and clang-format
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## rewrite the sources in the house format
	$(BIN)/clang-format -i $(CXX_SOURCES)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## side by side with ONNX Runtime, OpenVINO, ncnn, MNN and LiteRT
	$(BIN)/python benchmarks/compare.py

bench-families: $(STAMP)  ## the same for MobileNetV2, V3-Large, V3-Small and V4-Conv-Small
	$(BIN)/python benchmarks/compare.py --families

# The logs that ship for boards that are not at hand. What was found stays in build/tuning_logs: the same
# command, with more minutes, goes on from there.
ARM_LOGS := rpi4 rk3588
MINUTES ?= 5
logs-arm: $(STAMP) emulator  ## search for rpi4 and rk3588 by counted instructions, into tuning_logs/
	@mkdir -p build
	@for alpha in 1.0 0.75 0.5 0.25; do \
	  $(BIN)/tvm-mobilenet export mobilenet_v1_$${alpha}_224 -o build/v1_$$alpha.onnx || exit 1; \
	  for target in $(ARM_LOGS); do \
	    $(BIN)/tvm-mobilenet tune build/v1_$$alpha.onnx --target $$target --emulated \
	      --cost instructions --minutes $(MINUTES) --logs build/tuning_logs || exit 1; \
	  done; \
	done
	@for target in $(ARM_LOGS); do \
	  mkdir -p tuning_logs/$$target && $(BIN)/tvm-mobilenet logs export $$target \
	    --logs build/tuning_logs -o tuning_logs/$$target/records.jsonl || exit 1; \
	done

# The same for int8, beside the float32 records that are there: models are quantized on random inputs,
# since zero points and scales are no part of a record.
INT8_LOGS := rpi4 rpi5
logs-arm-int8: $(STAMP) emulator  ## search for int8 kernels of rpi4 and rpi5 by counted instructions
	@mkdir -p build
	@for target in $(INT8_LOGS); do test ! -f tuning_logs/$$target/records.jsonl || \
	  $(BIN)/tvm-mobilenet logs import tuning_logs/$$target/records.jsonl --logs build/tuning_logs || exit 1; \
	done
	@for alpha in 1.0 0.75 0.5 0.25; do \
	  $(BIN)/tvm-mobilenet export mobilenet_v1_$${alpha}_224 -o build/v1_$$alpha.onnx && \
	  $(BIN)/tvm-mobilenet quantize build/v1_$$alpha.onnx --calibration random \
	    -o build/v1_$$alpha.int8.onnx || exit 1; \
	  for target in $(INT8_LOGS); do \
	    $(BIN)/tvm-mobilenet tune build/v1_$$alpha.int8.onnx --target $$target --emulated \
	      --cost instructions --minutes $(MINUTES) --logs build/tuning_logs || exit 1; \
	  done; \
	done
	@for target in $(INT8_LOGS); do \
	  mkdir -p tuning_logs/$$target && $(BIN)/tvm-mobilenet logs export $$target \
	    --logs build/tuning_logs -o tuning_logs/$$target/records.jsonl || exit 1; \
	done

# The same by the clock, on the machine that the target describes and on no other; leave it alone meanwhile.
ZEN3_MODELS := 1.0_224 0.5_160 0.25_128
logs-zen3: $(STAMP)  ## search on two cores of Zen 3, into tuning_logs/
	@mkdir -p build tuning_logs/x86-64-zen3
	@for size in $(ZEN3_MODELS); do \
	  $(BIN)/tvm-mobilenet tune mobilenet_v1_$$size --target x86-64-zen3 \
	    --minutes $(MINUTES) --logs build/tuning_logs || exit 1; \
	done
	@$(BIN)/tvm-mobilenet logs export x86-64-zen3 --logs build/tuning_logs \
	  -o tuning_logs/x86-64-zen3/records.jsonl

AVX512_SIZES := $(foreach size,224 192 160 128,$(foreach alpha,1.0 0.75 0.5 0.25,$(alpha)_$(size)))
logs-avx512: $(STAMP)  ## search on two cores of Cascade Lake, into tuning_logs/
	@mkdir -p build tuning_logs/x86-64-avx512-vnni
	@for size in $(AVX512_SIZES); do \
	  $(BIN)/tvm-mobilenet tune mobilenet_v1_$$size --target x86-64-avx512-vnni \
	    --minutes $(MINUTES) --logs build/tuning_logs || exit 1; \
	done
	@$(BIN)/tvm-mobilenet export mobilenet_v1_1.0_224 -o build/v1_1.0.onnx && \
	  $(BIN)/tvm-mobilenet quantize build/v1_1.0.onnx --calibration random -o build/v1_1.0.int8.onnx && \
	  $(BIN)/tvm-mobilenet tune build/v1_1.0.int8.onnx --target x86-64-avx512-vnni \
	    --minutes $(MINUTES) --logs build/tuning_logs
	@$(BIN)/tvm-mobilenet logs export x86-64-avx512-vnni --logs build/tuning_logs \
	  -o tuning_logs/x86-64-avx512-vnni/records.jsonl

clean:  ## remove everything that was made, the environment included
	rm -rf $(VENV) build dist out .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
