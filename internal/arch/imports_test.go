// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/causeway-lb/causeway/"

// pure names the packages that decide and never act, and everything below
// them. They see the API's structs and addresses, no clock, no disk, no
// network, no logger.
var pure = []string{
	"internal/bitmap",
	"internal/refcount",
	"internal/netaddr",
	"internal/alloc",
	"internal/endpointslice",
	"internal/inspect",
	"internal/proxy/model",
	"internal/announce/elect",
	"internal/announce/nodeinfo",
	"internal/announce/l2/claim",
}

// impure is what a pure package may not import itself; whatever it imports
// from this module is held to the same.
var impure = []string{
	"k8s.io/client-go",
	"sigs.k8s.io/controller-runtime",
	"github.com/go-logr/logr",
	"github.com/vishvananda",
	"github.com/google/nftables",
	"net/http",
	"log",
	"log/slog",
	"os",
	"os/exec",
	"syscall",
}

// layers says, for a package and all below it, what of this module it may not
// depend on, however indirectly.
var layers = map[string][]string{
	"api":                  {"internal", "controllers", "cmd"},
	"internal":             {"controllers", "cmd"},
	"internal/proxy":       {"internal/agent", "internal/announce", "internal/conntrack", "internal/lab"},
	"internal/announce":    {"internal/agent", "internal/proxy", "internal/lab"},
	"internal/agent":       {"internal/lab", "internal/provisioner"},
	"internal/bitmap":      {"internal/alloc"},
	"internal/alloc":       {"internal/allocator", "internal/provisioner", "internal/queue"},
	"internal/allocator":   {"internal/provisioner", "internal/endpointslice"},
	"internal/provisioner": {"internal/alloc/services", "internal/allocator", "internal/endpointslice", "internal/queue"},
	"internal/queue":       {"api", "internal"},
	"internal/inspect":     {"internal/netlink", "internal/proxy/backend", "internal/proxy/elements"},
	"internal/refcount":    {"api", "internal/proxy", "internal/netlink"},
	"internal/conntrack":   {"internal/agent", "internal/lab"},
	"internal/netlink":     {"api", "internal/proxy", "internal/conntrack", "internal/announce", "internal/agent", "internal/lab"},
	"controllers":          {"internal/agent", "internal/proxy", "internal/announce", "internal/lab", "cmd"},
	"cmd/controller":       {"internal/agent", "internal/proxy", "internal/lab"},
	"cmd/agent":            {"controllers", "internal/lab"},
	"cmd/causeway":         {"controllers", "internal/agent", "internal/announce", "internal/lab"},

	// The controllers do not import each other.
	"controllers/clusterip":    {"controllers/endpoints", "controllers/gossipkey", "controllers/loadbalancer", "internal/endpointslice"},
	"controllers/endpoints":    {"controllers/clusterip", "controllers/gossipkey", "controllers/loadbalancer", "controllers/validate", "internal/allocator", "internal/provisioner/pool"},
	"controllers/gossipkey":    {"controllers/clusterip", "controllers/endpoints", "controllers/loadbalancer", "controllers/validate", "internal"},
	"controllers/loadbalancer": {"controllers/clusterip", "controllers/endpoints", "controllers/gossipkey", "internal/allocator", "internal/endpointslice"},
	"controllers/validate":     {"controllers/clusterip", "controllers/endpoints", "controllers/gossipkey", "controllers/loadbalancer", "internal/allocator", "internal/provisioner"},
	"internal/healthcheck":     {"internal/agent", "internal/lab"},
	"internal/httpserver":      {"internal/agent", "internal/healthcheck", "internal/proxy", "internal/announce", "internal/lab"},

	"internal/announce/nodeinfo": {"internal/announce/members", "internal/announce/links", "internal/announce/l2"},
	"internal/announce/members":  {"internal/announce/links", "internal/announce/l2"},
	"internal/announce/links":    {"internal/announce/members", "internal/announce/l2"},
}

// testOnly is the root of what only tests and benchmarks import: it may use the
// lab and every layer. TestTestSupportStaysInTests holds the others to it.
const testOnly = module + "internal/testkit"

// products are the programs that are installed: in the cluster, and in an
// operator's shell.
var products = []string{"cmd/agent", "cmd/controller", "cmd/causeway"}

// development is what no product may depend on.
var development = []string{"internal/testkit", "internal/lab", "test", "cmd/causeway-lab"}

type listed struct {
	ImportPath, Dir string
	Export          string // file of export data; of listExports
	GoFiles         []string
	Imports         []string
	Deps            []string
}

func list(t *testing.T) []listed {
	t.Helper()
	return golist(t, "-json=ImportPath,Dir,GoFiles,Imports,Deps", module+"...")
}

// listExports returns packages, of this module or not, with their export data.
func listExports(t *testing.T, paths []string) []listed {
	t.Helper()
	return golist(t, append([]string{"-export", "-json=ImportPath,Export"}, paths...)...)
}

func golist(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var packages []listed
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

// below tells whether path is root or a package below it.
func below(path, root string) bool {
	return path == root || strings.HasPrefix(path, root+"/")
}

func TestPurePackagesImportNothingImpure(t *testing.T) {
	packages := list(t)
	for _, root := range pure {
		found := false
		for _, p := range packages {
			if !below(p.ImportPath, module+root) {
				continue
			}
			found = true
			for _, imported := range p.Imports {
				for _, bad := range impure {
					if below(imported, bad) {
						t.Errorf("%s imports %s: pure packages get such things as arguments", p.ImportPath, imported)
					}
				}
				if strings.HasPrefix(imported, module) && !isPure(imported) {
					t.Errorf("%s imports %s, which is not pure", p.ImportPath, imported)
				}
			}
		}
		if !found {
			t.Errorf("no package %s: the list in this test is out of date", root)
		}
	}
}

func isPure(path string) bool {
	for _, root := range pure {
		if below(path, module+root) {
			return true
		}
	}
	return below(path, module+"api")
}

func TestDependenciesGoOneWay(t *testing.T) {
	for _, p := range list(t) {
		if below(p.ImportPath, testOnly) {
			continue
		}
		for root, forbidden := range layers {
			if !below(p.ImportPath, module+root) {
				continue
			}
			for _, dep := range p.Deps {
				for _, bad := range forbidden {
					if below(dep, module+bad) {
						t.Errorf("%s depends on %s: %s may not depend on %s", p.ImportPath, dep, root, bad)
					}
				}
			}
		}
	}
}

// TestNoClockInPurePackages looks for time.Now where only arguments may tell
// the time.
func TestNoClockInPurePackages(t *testing.T) {
	for _, root := range pure {
		cmd := exec.Command("grep", "-rnE", `time\.(Now|Since|After|Sleep|NewTimer|NewTicker)\(`, "--include=*.go", "--exclude=*_test.go", "../../"+root)
		out, err := cmd.Output()
		var exit *exec.ExitError
		switch {
		case err == nil:
			t.Errorf("the clock is read in a pure package:\n%s", out)
		case errors.As(err, &exit) && exit.ExitCode() == 1: // grep found nothing
		default:
			t.Fatalf("%v: %s", err, out)
		}
	}
}

func TestTestSupportStaysInTests(t *testing.T) {
	for _, p := range list(t) {
		if below(p.ImportPath, module+"test") || below(p.ImportPath, testOnly) {
			continue
		}
		for _, dep := range p.Deps {
			if below(dep, testOnly) {
				t.Errorf("%s depends on %s, which is for tests", p.ImportPath, dep)
			}
		}
		if slices.Contains(p.Imports, "testing") {
			t.Errorf("%s imports testing: what helps tests belongs below %s", p.ImportPath, testOnly)
		}
	}
}

// TestProductsLinkNothingForDevelopment looks at the programs as they are built,
// whatever the packages in between are.
func TestProductsLinkNothingForDevelopment(t *testing.T) {
	packages := map[string]listed{}
	for _, p := range list(t) {
		packages[p.ImportPath] = p
	}
	for _, product := range products {
		program, ok := packages[module+product]
		if !ok {
			t.Errorf("no program %s: the list in this test is out of date", product)
		}
		for _, dep := range program.Deps {
			for _, bad := range development {
				if below(dep, module+bad) {
					t.Errorf("%s links %s", product, dep)
				}
			}
		}
	}
}
