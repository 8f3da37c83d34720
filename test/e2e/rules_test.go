// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/testkit"
)

// size is how much a node's rule set holds.
type size struct{ chains, rules, elements int }

// ruleSet counts what nft lists on a node, in the agent's tables.
func ruleSet(t *testing.T, node string) size {
	t.Helper()
	cmd := exec.Command("nft", "-j", "list", "ruleset")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cluster.Machine(node).Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		t.Fatalf("nft list ruleset on %s: %v: %s", node, err, stderr.String())
	}
	var list struct {
		Nftables []struct {
			Chain *struct{ Table string }
			Rule  *struct{ Table string }
			Map   *struct {
				Table string
				Elem  []json.RawMessage
			}
		}
	}
	if err := json.Unmarshal(stdout.Bytes(), &list); err != nil {
		t.Fatalf("read nft's list: %v", err)
	}
	var got size
	for _, object := range list.Nftables {
		switch {
		case object.Chain != nil && object.Chain.Table == "causeway":
			got.chains++
		case object.Rule != nil && object.Rule.Table == "causeway":
			got.rules++
		case object.Map != nil && object.Map.Table == "causeway":
			got.elements += len(object.Map.Elem)
		}
	}
	return got
}

// The rule set is a constant program: some hundred Services more change neither
// the number of chains nor that of rules, only map elements.
func TestConstantRules(t *testing.T) {
	const count = 200
	ctx := need(t)
	before := ruleSet(t, "node-1")
	if before.chains == 0 || before.rules == 0 {
		t.Fatalf("no rules on node-1: %+v", before)
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "many"}}
	if err := api.Create(ctx, namespace); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { deleteMany(t, namespace) })
	var group errgroup.Group
	group.SetLimit(16)
	for i := range count {
		group.Go(func() error { return createOne(i) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, "all Services in the kernel", func() error {
		// Every Service has one frontend and three endpoints.
		if now := ruleSet(t, "node-1"); now.elements < 4*count {
			return fmt.Errorf("%d map elements, want at least %d", now.elements, 4*count)
		}
		return nil
	})
	after := ruleSet(t, "node-1")
	if after.chains != before.chains || after.rules != before.rules {
		t.Errorf("with %d Services more: %d chains and %d rules, before: %d and %d", count, after.chains, after.rules, before.chains, before.rules)
	}
	t.Logf("%d chains, %d rules; %d map elements before, %d after", after.chains, after.rules, before.elements, after.elements)
	answering(t, ctx, lab.Client, "192.0.2.200:30001", all())
}

// createOne makes a Service with endpoints of its own, so that the test loads
// neither kubelets nor the endpoints of the servers.
func createOne(i int) error {
	ctx, cancel := contextFor(time.Minute)
	defer cancel()
	name := fmt.Sprint("s", i)
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "many", Name: name},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(38001)}}},
	}
	if err := api.Create(ctx, service); err != nil {
		return err
	}
	return api.Create(ctx, sliceOf(service, 3))
}
