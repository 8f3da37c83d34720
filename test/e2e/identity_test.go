// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/test/privilege"
)

// auditEvent is what of audit.k8s.io/v1 the test reads.
type auditEvent struct {
	RequestURI     string
	Verb           string
	UserAgent      string
	SourceIPs      []string
	User           struct{ Username string }
	ResponseStatus struct{ Code int }
	StageTimestamp time.Time
}

// restarted is when a test started the API server anew, and when that said that it
// was ready. Until then it knows of no roles and of no ServiceAccounts, and refuses
// everybody (401 to nobody it knows, 403), however long that takes.
type restarted struct{ from, ready time.Time }

// restarts are all of them.
var restarts []restarted

// Nobody but the control plane itself is an administrator; Causeway's parts are
// their ServiceAccounts, and are never refused anything that they try: the
// roles of config/ are enough and are needed.
func TestIdentities(t *testing.T) {
	ctx := need(t)
	agents := systemPods(t, ctx, "causeway-agent")
	events, err := readAudit(cluster.AuditLog())
	if err != nil {
		t.Fatal(err)
	}
	controlPlane := cluster.Node(lab.ControlPlane).Addresses()[0].String()
	seen := map[string]bool{}
	for _, e := range events {
		user := e.User.Username
		if code := e.ResponseStatus.Code; (code == 403 || user == "" && code == 401) && justRestarted(e.StageTimestamp) {
			continue
		}
		seen[user] = true
		if user == "kubernetes-admin" && !slices.Contains(e.SourceIPs, controlPlane) {
			t.Errorf("an administrator's request from %s: %s %s", strings.Join(e.SourceIPs, ", "), e.Verb, e.RequestURI)
		}
		if strings.HasPrefix(user, "system:serviceaccount:causeway-system:") && e.ResponseStatus.Code == 403 {
			t.Errorf("%s was refused: %s %s", user, e.Verb, e.RequestURI)
		}
		program := strings.SplitN(e.UserAgent, "/", 2)[0]
		if (program == "agent" || program == "controller") && user != "system:serviceaccount:causeway-system:causeway-"+program {
			t.Errorf("%s made a request as %s: %s %s", program, user, e.Verb, e.RequestURI)
		}
	}
	for _, user := range []string{
		"system:serviceaccount:causeway-system:causeway-controller",
		"system:serviceaccount:causeway-system:causeway-agent",
		"system:node:node-1",
	} {
		if !seen[user] {
			t.Errorf("no request of %s among %d", user, len(events))
		}
	}
	if len(agents) != len(cluster.Nodes())+1 {
		t.Errorf("%d agents, want one on every node", len(agents))
	}
}

// All that these tests see the programs do, they do with the capabilities of config/
// and under a container runtime's default seccomp profile.
func TestProgramsAreConfined(t *testing.T) {
	ctx := need(t)
	for name, capabilities := range map[string]string{
		"agent":      "0000000000003000", // NET_ADMIN, NET_RAW
		"controller": "0000000000000000",
	} {
		for _, pod := range systemPods(t, ctx, "causeway-"+name) {
			status, err := cluster.ContainerStatus(&pod, name)
			if err != nil {
				t.Error(err)
				continue
			}
			for field, want := range map[string]string{"Seccomp": "2", "NoNewPrivs": "1", "CapEff": capabilities, "CapBnd": capabilities} {
				if got := status[field]; got != want {
					t.Errorf("%s: %s is %q, want %q", pod.Name, field, got, want)
				}
			}
		}
	}
}

// Each right of the agents is one without which some request of theirs would have
// been refused. (That of the controller: the suite of controllers/.)
func TestAgentsNeedTheirRights(t *testing.T) {
	ctx := need(t)
	manifests, err := privilege.Read(filepath.Join(cluster.Setup.Source, "config", "rbac"))
	if err != nil {
		t.Fatal(err)
	}
	account := privilege.Account("causeway-agent")
	rights := privilege.Grants(manifests, account)
	if len(rights) == 0 {
		t.Fatal("no rights in config/rbac")
	}
	// What an agent wrote before it was started anew, it writes again.
	pods := systemPods(t, ctx, "causeway-agent")
	if err := cluster.KillContainer(&pods[0], "agent"); err != nil {
		t.Fatal(err)
	}
	// A problem that comes back is told by an event that is there already.
	service := create(t, ctx, "rights")
	ready(t, ctx, service)
	testkit.Eventually(t, 30*time.Second, "every right is needed", func() error {
		requests, err := privilege.Requests(cluster.AuditLog(), account)
		if err != nil {
			return err
		}
		unneeded := privilege.Unneeded(rights, requests)
		if len(unneeded) == 0 {
			return nil
		}
		before := service.DeepCopy()
		if len(service.Spec.ExternalIPs) == 0 {
			service.Spec.ExternalIPs = []string{"198.51.100.9"} // no node allows it
		} else {
			service.Spec.ExternalIPs = nil
		}
		if err := api.Patch(ctx, service, client.MergeFrom(before)); err != nil {
			return err
		}
		return fmt.Errorf("the agents do without %v: take them away", unneeded)
	})
}

func justRestarted(at time.Time) bool {
	return slices.ContainsFunc(restarts, func(r restarted) bool { return at.After(r.from) && at.Before(r.ready) })
}

func readAudit(path string) ([]auditEvent, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var events []auditEvent
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e auditEvent
		if json.Unmarshal(lines.Bytes(), &e) == nil { // the last line may be half written
			events = append(events, e)
		}
	}
	return events, lines.Err()
}

// One node that fails takes no more than one of the controllers with it.
func TestControllersAreOnTwoNodes(t *testing.T) {
	ctx := need(t)
	nodes := map[string]bool{}
	pods := systemPods(t, ctx, "causeway-controller")
	for _, pod := range pods {
		nodes[pod.Spec.NodeName] = true
	}
	if len(pods) < 2 || len(nodes) != len(pods) {
		t.Errorf("%d controllers on %d nodes, want each on one of its own", len(pods), len(nodes))
	}
}
