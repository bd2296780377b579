# make            compile
# make test       everything, in a real guest too; as root it installs the Debian packages that are missing
# make test-unit  what needs no guest
# make test-long  the random suites with many more cases (LONG="races kills"; hours in all)
# make demo       a real guest mounts a share (SOURCE=s3 or SOURCE=gcs: a bucket)
# make bench      comparison with virtiofsd (BENCH_ARGS="--rounds 5")
# make bench-bucket  a bucket: comparison with s3fs and rclone (BENCH_ARGS=--quick)
# make fuzz       malformed rings, messages and requests (FUZZ_ARGS="--seconds 60")
# make docs       write the generated parts of docs/
# make install    DESTDIR= PREFIX=/usr/local: a daemon that starts without npm; make uninstall removes it

PREFIX ?= /usr/local
DESTDIR ?=
NODE ?= node
BENCH_ARGS ?=
FUZZ_ARGS ?=
LONG ?=
# Spec lines for people, TAP for the totals.
TEST_FLAGS = --test --test-timeout=600000 --enable-source-maps --test-reporter=spec --test-reporter-destination=stdout \
	--test-reporter=tap --test-reporter-destination=build/tests.tap

BINDIR = $(DESTDIR)$(PREFIX)/bin
LIBDIR = $(DESTDIR)$(PREFIX)/lib/bucketfsd
DOCDIR = $(DESTDIR)$(PREFIX)/share/doc/bucketfsd
QEMUDIR = $(DESTDIR)$(PREFIX)/share/qemu/vhost-user
UNITDIR = $(DESTDIR)$(PREFIX)/lib/systemd/system
UNITS = bucketfsd@.service bucketfsd@.socket bucketfsd-bucket@.service bucketfsd-bucket@.socket

# From the sources, so that a test whose source is gone does not run from an old build.
compiled = $(patsubst %.ts,build/%.js,$(sort $(shell find $(1) -name '*.test.ts')))
UNIT_TESTS = $(filter-out build/test/e2e/%,$(call compiled,test))
E2E_TESTS = $(filter build/test/e2e/%,$(call compiled,test))

.PHONY: build rgw test test-unit test-long demo bench bench-bucket fuzz docs deps install uninstall clean

build: node_modules/.package-lock.json
	npx --no-install tsc -p tsconfig.json
	@chmod +x build/src/main.js

# npm writes this file last; it is older than the lock file when a dependency changed since.
node_modules/.package-lock.json: package.json package-lock.json
	npm ci --no-audit --no-fund
	@touch $@

deps:
	@if [ "$$(id -u)" = 0 ]; then scripts/install-deps.sh; fi

# The root of the S3 server: before the tests, whose time is limited. Those that need it say what is missing if it cannot be made.
rgw: deps
	@if [ "$$(id -u)" = 0 ]; then scripts/rgw.sh build || true; fi

test: deps rgw build
	@$(call run_tests,$(UNIT_TESTS) $(E2E_TESTS))

test-unit: build
	@$(call run_tests,$(UNIT_TESTS))

test-long: deps rgw build
	@NODE="$(NODE)" scripts/test-long.sh $(LONG)

# The totals are printed last. With BUCKETFSD_NO_SKIP a test that did not run counts as failed.
define run_tests
	$(NODE) $(TEST_FLAGS) $(1); status=$$?; \
	grep -E '^# (tests|pass|fail|cancelled|skipped) ' build/tests.tap; \
	if [ -n "$$BUCKETFSD_NO_SKIP" ] && ! grep -q '^# skipped 0$$' build/tests.tap; then \
	  grep -E '# SKIP' build/tests.tap; echo 'tests were skipped, and BUCKETFSD_NO_SKIP is set' >&2; status=1; \
	fi; exit $$status
endef

demo: deps build
	@SOURCE='$(or $(SOURCE),directory)' scripts/demo.sh

bench: build
	@$(NODE) build/bench/bench.js $(BENCH_ARGS)

bench-bucket: build
	@$(NODE) build/bench/bucket/bench.js $(BENCH_ARGS)

fuzz: build
	@$(NODE) build/test/fuzz/fuzz.js $(FUZZ_ARGS)

docs: build
	@UPDATE_DOCS=1 $(NODE) --test --test-reporter=dot build/test/tidy.test.js

# Only what runs: the compiled daemon and the packages that it needs, copied from node_modules.
install: build
	rm -rf $(LIBDIR)
	mkdir -p $(BINDIR) $(LIBDIR)/build $(DOCDIR)/examples $(QEMUDIR) $(UNITDIR)
	cp -R build/src $(LIBDIR)/build/
	cp package.json $(LIBDIR)/
	npm ls --omit=dev --all --parseable 2>/dev/null | awk -v root="$$(pwd -P)/" 'index($$0, root) == 1 { print substr($$0, length(root) + 1) }' | \
	  grep '^node_modules/' | grep -v '^node_modules/@types/' | sort | \
	  while read -r package; do mkdir -p "$(LIBDIR)/$${package%/*}" && cp -R "$$package" "$(LIBDIR)/$${package%/*}/"; done
	@test -d $(LIBDIR)/node_modules/koffi || { echo 'make install: npm ls names no packages to install: run npm ci in this directory' >&2; exit 1; }
	install -m 755 deploy/bucketfsd $(BINDIR)/bucketfsd
	for unit in $(UNITS); do sed 's|/usr/local/|$(PREFIX)/|g' deploy/$$unit > $(UNITDIR)/$$unit; done
	sed 's|/usr/local/|$(PREFIX)/|g' deploy/50-bucketfsd.json > $(QEMUDIR)/50-bucketfsd.json
	install -m 644 LICENSE docs/*.md deploy/bucketfsd.env.example deploy/bucketfsd-bucket.env.example $(DOCDIR)/
	install -m 644 deploy/bucketfsd-share.conf deploy/examples/*.xml deploy/examples/*.fstab $(DOCDIR)/examples/
	install -m 755 deploy/examples/*.sh $(DOCDIR)/examples/

uninstall:
	rm -rf $(LIBDIR) $(DOCDIR)
	rm -f $(BINDIR)/bucketfsd $(QEMUDIR)/50-bucketfsd.json $(addprefix $(UNITDIR)/,$(UNITS))

clean:
	rm -rf build
