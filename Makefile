# make demo: environment, build, a small self-made city, train, evaluate, export.   make test: environment, build, all tests.
PYTHON ?= python3.11
BIN := .venv/bin
RUN := outputs/demo

.PHONY: demo test install lint clean

demo: install
	$(BIN)/scene-distill data city outputs/demo-city --recipe city_demo
	rm -rf $(RUN)
	$(BIN)/scene-distill train momentum-gs --config configs/demo.yaml --data outputs/demo-city --output-dir $(RUN)
	$(BIN)/scene-distill export $(RUN) --format ply splat

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

install: .venv/.installed

.venv/.installed: pyproject.toml CMakeLists.txt $(shell find cuda -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name 'CMakeLists.txt')
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q torch==2.14.1 torchvision==0.29.1
	$(BIN)/python -m pip install -q -e '.[nerfstudio,city,diffusion,dev]'
	touch $@

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build outputs
