// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers/gossipkey"
	"github.com/causeway-lb/causeway/internal/allocator"
	"github.com/causeway-lb/causeway/internal/certs"
	"github.com/causeway-lb/causeway/internal/httpserver"
	"github.com/causeway-lb/causeway/test/privilege"
)

// The manager that serves the specs is the ServiceAccount of config/, with the
// roles and under the policies that are shipped: that they are enough is shown
// by every spec.
var (
	controllerAccount = privilege.Account("causeway-controller")
	agentAccount      = privilege.Account("causeway-agent")
	// shipped are the objects of config/rbac and config/policy.
	shipped []client.Object
	// auditLog is what the API server writes down of every request.
	auditLog string
	// asked is what the controller asked for, once the API server has stopped.
	asked    []privilege.Request
	askedErr error
	// controllerConfig and controllerClient are the controller's.
	controllerConfig *rest.Config
	controllerClient client.Client
)

// auditing has the API server write down every request, and ask for the right to
// block the deletion of owners, as some clusters do.
func auditing(env *envtest.Environment) {
	GinkgoHelper()
	dir := GinkgoT().TempDir()
	auditLog = filepath.Join(dir, "audit.log")
	policy := filepath.Join(dir, "policy.yaml")
	Expect(os.WriteFile(policy, []byte(privilege.Audit), 0o600)).To(Succeed())
	env.ControlPlane.GetAPIServer().Configure().
		Set("audit-policy-file", policy).Set("audit-log-path", auditLog).
		// As before Kubernetes 1.34: clients list what they are to watch.
		Set("feature-gates", "WatchList=false").
		Append("enable-admission-plugins", "OwnerReferencesPermissionEnforcement")
}

// becomeController installs what is shipped and makes controllerConfig.
func becomeController(ctx context.Context) {
	GinkgoHelper()
	for _, dir := range []string{"rbac", "policy"} {
		objects, err := privilege.Read(filepath.Join("..", "config", dir))
		Expect(err).NotTo(HaveOccurred())
		shipped = append(shipped, objects...)
	}
	Expect(privilege.Install(ctx, k8sClient, shipped)).To(Succeed())
	controllerConfig = as(controllerAccount)
	var err error
	controllerClient, err = client.New(controllerConfig, client.Options{Scheme: NewScheme()})
	Expect(err).NotTo(HaveOccurred())
	Eventually(func() error {
		return controllerClient.List(ctx, &corev1.ServiceList{})
	}).Should(Succeed(), "the API server knows the roles")
}

// as is how to reach the API server as a ServiceAccount, by certificate.
func as(account client.ObjectKey) *rest.Config {
	GinkgoHelper()
	user, err := testEnv.AddUser(envtest.User{Name: privilege.Username(account), Groups: privilege.Groups(account)}, rest.CopyConfig(restConfig))
	Expect(err).NotTo(HaveOccurred())
	return user.Config()
}

// Each right of the controller is one without which some request of the specs
// would have been refused.
var _ = ReportAfterSuite("the controller's rights", func(report Report) {
	config := report.SuiteConfig
	if !report.SuiteSucceeded || len(config.FocusStrings)+len(config.SkipStrings)+len(config.FocusFiles)+len(config.SkipFiles) > 0 || config.LabelFilter != "" {
		return // not everything ran
	}
	Expect(askedErr).NotTo(HaveOccurred())
	Expect(asked).NotTo(BeEmpty())
	var unneeded []string
	for _, right := range privilege.Unneeded(privilege.Grants(shipped, controllerAccount), asked) {
		unneeded = append(unneeded, right.String())
	}
	Expect(unneeded).To(BeEmpty(), "rights of the controller that no spec needs: take them away, or add the spec")
})

var _ = Describe("The controller's ServiceAccount", Ordered, func() {
	hook := func(name string) *admissionv1.ValidatingWebhook {
		return &admissionv1.ValidatingWebhook{
			Name: name, AdmissionReviewVersions: []string{"v1"}, SideEffects: ptr.To(admissionv1.SideEffectClassNone),
			ClientConfig: admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{Namespace: "nowhere", Name: "nobody"}},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule:       admissionv1.Rule{APIGroups: []string{"example.com"}, APIVersions: []string{"v1"}, Resources: []string{"things"}},
			}},
		}
	}
	var validating *admissionv1.ValidatingWebhookConfiguration
	var mutating *admissionv1.MutatingWebhookConfiguration
	BeforeAll(func(ctx SpecContext) {
		v := hook("one.example.com")
		validating = &admissionv1.ValidatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: "causeway"},
			Webhooks:   []admissionv1.ValidatingWebhook{*v, *hook("two.example.com")},
		}
		mutating = &admissionv1.MutatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: "causeway"},
			Webhooks: []admissionv1.MutatingWebhook{{
				Name: v.Name, AdmissionReviewVersions: v.AdmissionReviewVersions, SideEffects: v.SideEffects, ClientConfig: v.ClientConfig, Rules: v.Rules,
			}},
		}
		for _, object := range []client.Object{validating, mutating} {
			Expect(k8sClient.Create(ctx, object)).To(Succeed())
			DeferCleanup(func(ctx SpecContext) { Expect(k8sClient.Delete(ctx, object)).To(Succeed()) })
		}
	})

	It("keeps the webhooks' certificate and the trust in it", func(ctx SpecContext) {
		key := client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.WebhookSecret}
		keeper, err := certs.NewKeeper(certs.Config{
			Client: controllerClient, Secret: key, DNSNames: []string{"webhook-service.causeway-system.svc"},
			MutatingConfig: "causeway", ValidatingConfig: "causeway",
		})
		Expect(err).NotTo(HaveOccurred())
		Expect(keeper.Sync(ctx, time.Now())).To(Succeed())
		secret := &corev1.Secret{}
		Expect(k8sClient.Get(ctx, key, secret)).To(Succeed())
		Expect(k8sClient.Get(ctx, client.ObjectKeyFromObject(validating), validating)).To(Succeed())
		Expect(k8sClient.Get(ctx, client.ObjectKeyFromObject(mutating), mutating)).To(Succeed())
		Expect(validating.Webhooks[1].ClientConfig.CABundle).To(Equal(secret.Data["ca.crt"]))
		Expect(mutating.Webhooks[0].ClientConfig.CABundle).To(Equal(secret.Data["ca.crt"]))

		By("repairing a damaged Secret")
		secret.Data["ca.crt"] = []byte("nonsense")
		Expect(k8sClient.Update(ctx, secret)).To(Succeed())
		Expect(keeper.Sync(ctx, time.Now())).To(Succeed())
		Expect(k8sClient.Get(ctx, client.ObjectKeyFromObject(validating), validating)).To(Succeed())
		Expect(k8sClient.Get(ctx, key, secret)).To(Succeed())
		Expect(validating.Webhooks[0].ClientConfig.CABundle).To(Equal(secret.Data["ca.crt"]))
	})

	It("keeps the gossip key", func(ctx SpecContext) {
		r := &gossipkey.Reconciler{Client: controllerClient, Namespace: v1alpha1.SystemNamespace}
		Expect(r.Ensure(ctx)).To(Succeed())
		r.Now = func() time.Time { return time.Now().Add(gossipkey.KeyAge + time.Minute) }
		Expect(r.Ensure(ctx)).To(Succeed(), "the next step")
	})

	It("asks who may read its metrics", func(ctx SpecContext) {
		kube, err := kubernetes.NewForConfig(controllerConfig)
		Expect(err).NotTo(HaveOccurred())
		shown := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("metrics")) })
		handler := httpserver.Authorized(kube, "/metrics", shown)
		collector := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: newNamespace(ctx), Name: "collector"}}
		create(ctx, collector)
		request := &authenticationv1.TokenRequest{}
		Expect(k8sClient.SubResource("token").Create(ctx, collector, request)).To(Succeed())
		get := func(token string) int {
			r := httptest.NewRequest(http.MethodGet, "/metrics", nil).WithContext(ctx)
			r.Header.Set("Authorization", "Bearer "+token)
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			return w.Code
		}
		Expect(get("guessed")).To(Equal(http.StatusUnauthorized))
		Expect(get(request.Status.Token)).To(Equal(http.StatusForbidden))
		create(ctx, &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "collector-" + rand8()},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "causeway-metrics-reader"},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: collector.Namespace, Name: collector.Name}},
		})
		Eventually(func() int { return get(request.Status.Token) }).Should(Equal(http.StatusOK))
	})

	It("leads", func(ctx SpecContext) {
		mgr, err := ctrl.NewManager(controllerConfig, ctrl.Options{
			Scheme: NewScheme(), Metrics: metricsserver.Options{BindAddress: "0"},
			LeaderElection: true, LeaderElectionID: "causeway-controller", LeaderElectionNamespace: v1alpha1.SystemNamespace,
			LeaderElectionReleaseOnCancel: true,
		})
		Expect(err).NotTo(HaveOccurred())
		stop := startManager(mgr)
		Eventually(mgr.Elected()).Should(BeClosed())
		stop()
	})

	// What somebody tries who has stolen the controller's token.
	for _, attempt := range []struct {
		name string
		try  func(context.Context, client.Client) error
	}{
		{"sends a webhook's questions elsewhere", func(ctx context.Context, c client.Client) error {
			return patch(ctx, c, validating, `{"webhooks":[{"name":"one.example.com","clientConfig":{"service":{"name":"evil","namespace":"default"}}}]}`)
		}},
		{"has a webhook asked by URL", func(ctx context.Context, c client.Client) error {
			return patch(ctx, c, mutating, `{"webhooks":[{"name":"one.example.com","clientConfig":{"service":null,"url":"https://192.0.2.66/"}}]}`)
		}},
		{"has a webhook asked about everything", func(ctx context.Context, c client.Client) error {
			return patch(ctx, c, mutating, `{"webhooks":[{"name":"one.example.com","rules":[{"operations":["*"],"apiGroups":["*"],"apiVersions":["*"],"resources":["*/*"]}]}]}`)
		}},
		{"has a webhook's refusal ignored", func(ctx context.Context, c client.Client) error {
			return patch(ctx, c, validating, `{"webhooks":[{"name":"two.example.com","failurePolicy":"Ignore"}]}`)
		}},
		{"adds a webhook", func(ctx context.Context, c client.Client) error {
			return patch(ctx, c, validating, `{"webhooks":[{"name":"three.example.com","sideEffects":"None","admissionReviewVersions":["v1"],"clientConfig":{"url":"https://192.0.2.66/"}}]}`)
		}},
		{"takes a webhook away", func(ctx context.Context, c client.Client) error {
			return patch(ctx, c, validating, `{"webhooks":[{"$patch":"delete","name":"two.example.com"}]}`)
		}},
		{"labels a webhook configuration", func(ctx context.Context, c client.Client) error {
			return patch(ctx, c, validating, `{"metadata":{"labels":{"a":"b"}}}`)
		}},
		{"deletes a webhook configuration", func(ctx context.Context, c client.Client) error {
			return c.Delete(ctx, validating.DeepCopy())
		}},
		{"has a token of another ServiceAccount made", func(ctx context.Context, c client.Client) error {
			return c.Create(ctx, &corev1.Secret{Type: corev1.SecretTypeServiceAccountToken, ObjectMeta: metav1.ObjectMeta{
				Namespace: v1alpha1.SystemNamespace, Name: "loot", Annotations: map[string]string{corev1.ServiceAccountNameKey: agentAccount.Name},
			}})
		}},
		{"has a token made under the name of its own Secret", func(ctx context.Context, c client.Client) error {
			own := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.WebhookSecret}}
			Expect(client.IgnoreNotFound(k8sClient.Delete(ctx, own))).To(Succeed())
			return c.Create(ctx, &corev1.Secret{Type: corev1.SecretTypeServiceAccountToken, ObjectMeta: metav1.ObjectMeta{
				Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.WebhookSecret, Annotations: map[string]string{corev1.ServiceAccountNameKey: agentAccount.Name},
			}})
		}},
		{"makes a Secret of another name", func(ctx context.Context, c client.Client) error {
			return c.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, GenerateName: "causeway-gossip"}})
		}},
		{"reads another Secret", func(ctx context.Context, c client.Client) error {
			return c.Get(ctx, client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: "other"}, &corev1.Secret{})
		}},
		{"lists Secrets", func(ctx context.Context, c client.Client) error { return c.List(ctx, &corev1.SecretList{}) }},
		{"makes a Service", func(ctx context.Context, c client.Client) error {
			return c.Create(ctx, newService(v1alpha1.SystemNamespace, allocator.AuditName, nil))
		}},
		{"makes a Lease of another name", func(ctx context.Context, c client.Client) error {
			return c.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: "other"}})
		}},
		{"deletes a ServiceCIDR that is not its own", func(ctx context.Context, c client.Client) error {
			return c.Delete(ctx, &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}})
		}},
		{"lets go of a Service's address", func(ctx context.Context, c client.Client) error {
			return c.Delete(ctx, &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: "10.96.0.1"}})
		}},
		{"deletes a Service", func(ctx context.Context, c client.Client) error {
			return c.Delete(ctx, newService("default", "kubernetes", nil))
		}},
		{"makes a Pod", func(ctx context.Context, c client.Client) error {
			return c.Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: "evil"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}})
		}},
		{"gives itself a role", func(ctx context.Context, c client.Client) error {
			return c.Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "evil"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"}})
		}},
		{"takes the policies away", func(ctx context.Context, c client.Client) error {
			return c.Delete(ctx, &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "causeway-controller-webhooks"}})
		}},
		{"writes a Node", func(ctx context.Context, c client.Client) error {
			return patch(ctx, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "any"}}, `{"metadata":{"labels":{"a":"b"}}}`)
		}},
	} {
		It("is refused what it has no business with: it "+attempt.name, func(ctx SpecContext) {
			Expect(attempt.try(ctx, controllerClient)).To(beForbidden())
		})
	}

	It("needs each of its rights to block the deletion of owners", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		owner := func(kind, name string, uid types.UID, apiVersion string) []metav1.OwnerReference {
			return []metav1.OwnerReference{{APIVersion: apiVersion, Kind: kind, Name: name, UID: uid, BlockOwnerDeletion: ptr.To(true), Controller: ptr.To(true)}}
		}
		slice := func(owners []metav1.OwnerReference) client.Object {
			return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "s-" + rand8(), OwnerReferences: owners}, AddressType: discoveryv1.AddressTypeIPv4}
		}
		objects := map[string]func() client.Object{
			"services/finalizers":  func() client.Object { return slice(owner("Service", "s", "1", "v1")) },
			"endpoints/finalizers": func() client.Object { return slice(owner("Endpoints", "e", "1", "v1")) },
			"clusterippools/finalizers": func() client.Object {
				return &networkingv1.ServiceCIDR{
					ObjectMeta: metav1.ObjectMeta{
						Name: "s-" + rand8(), Labels: map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy},
						OwnerReferences: owner("ClusterIPPool", "p", "1", v1alpha1.GroupVersion.String()),
					},
					Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.99.0.0/24"}},
				}
			},
		}
		for _, right := range privilege.Grants(shipped, controllerAccount) {
			if !right.Finalizers() {
				continue
			}
			object, ok := objects[right.Resource]
			Expect(ok).To(BeTrue(), "nothing needs "+right.String())
			Expect(controllerClient.Create(ctx, object(), client.DryRunAll)).To(Succeed(), right.String())
			Expect(without(ctx, right).Create(ctx, object(), client.DryRunAll)).To(beForbidden(), "without "+right.String())
			delete(objects, right.Resource)
		}
		Expect(objects).To(BeEmpty())
	})
})

// without is a client like the controller's, but for one right.
func without(ctx context.Context, right privilege.Right) client.Client {
	GinkgoHelper()
	name := "without-" + rand8()
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, other := range privilege.Grants(shipped, controllerAccount) {
		if other != right && other.Namespace == "" {
			rule := rbacv1.PolicyRule{APIGroups: []string{other.Group}, Resources: []string{other.Resource}, Verbs: []string{other.Verb}}
			if other.Name != "" {
				rule.ResourceNames = []string{other.Name}
			}
			role.Rules = append(role.Rules, rule)
		}
	}
	create(ctx, role)
	create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: name}},
	})
	config := rest.CopyConfig(restConfig)
	config.Impersonate.UserName = name
	c, err := client.New(config, client.Options{Scheme: NewScheme()})
	Expect(err).NotTo(HaveOccurred())
	Eventually(func() error { return c.List(ctx, &corev1.ServiceList{}) }).Should(Succeed(), "the API server knows the role")
	return c
}

var _ = Describe("The agent's ServiceAccount", Ordered, func() {
	var one, two client.Client
	node := func(name string) *corev1.Node { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }
	address := &v1alpha1.LoadBalancerAddress{
		ObjectMeta: metav1.ObjectMeta{Name: "203.0.113.77"},
		Spec:       v1alpha1.LoadBalancerAddressSpec{Address: "203.0.113.77", Reserved: true},
	}
	agentKey := func(node string) *v1alpha1.AgentKey {
		return &v1alpha1.AgentKey{ObjectMeta: metav1.ObjectMeta{Name: node}, Spec: v1alpha1.AgentKeySpec{PublicKey: make([]byte, 32)}}
	}
	another := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"publicKey":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="}}`))

	BeforeAll(func(ctx SpecContext) {
		for _, name := range []string{"token-1", "token-2"} {
			n := node(name)
			n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"}}
			create(ctx, n)
		}
		create(ctx, address.DeepCopy())
		create(ctx, agentKey("token-2"))
		one, two = tokenOf(ctx, "token-1"), tokenOf(ctx, "token-2")
	})

	const announced = `{"status":{"node":%q,"interface":"eth0","since":"2026-01-01T00:00:00Z","conditions":[{"type":"Announced","status":"True","reason":"Announced","message":"m","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`
	const nobody = `{"status":{"node":null,"interface":null,"since":null,"conditions":[{"type":"Announced","status":"False","reason":"NoEligibleNode","message":"m","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`
	const condition = `{"status":{"conditions":[{"type":"CausewayProxyModeSupported","status":%q,"reason":"InUse","message":"m","lastHeartbeatTime":"2026-01-01T00:00:00Z","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`
	event := func(reporter, kind, name string) *eventsv1.Event {
		return &eventsv1.Event{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "e-" + rand8()}, EventTime: metav1.NowMicro(), Type: "Warning", Reason: "R", Action: "A",
			ReportingController: reporter, ReportingInstance: reporter + "-host", Regarding: corev1.ObjectReference{APIVersion: "v1", Kind: kind, Name: name},
		}
	}

	It("does what an agent does", func(ctx SpecContext) {
		Expect(patchStatus(ctx, one, node("token-1"), fmt.Sprintf(condition, "True"))).To(Succeed())
		Expect(patchStatus(ctx, one, node("token-1"), fmt.Sprintf(condition, "False"))).To(Succeed())
		Expect(patchStatus(ctx, one, address, fmt.Sprintf(announced, "token-1"))).To(Succeed())
		Expect(patchStatus(ctx, two, address, fmt.Sprintf(announced, "token-2"))).To(Succeed(), "it takes over")
		Expect(patchStatus(ctx, one, address, nobody)).To(Succeed(), "the announcer may be dead")
		Expect(patchStatus(ctx, two, address, fmt.Sprintf(announced, "token-2"))).To(Succeed())
		Expect(one.Create(ctx, agentKey("token-1"))).To(Succeed())
		Expect(one.Patch(ctx, agentKey("token-1"), another)).To(Succeed())
		e := event("causeway-agent", "Node", "token-1")
		Expect(one.Create(ctx, e)).To(Succeed())
		Expect(patch(ctx, one, e, `{"series":{"count":2,"lastObservedTime":"2026-01-01T00:00:00.000000Z"}}`)).To(Succeed())
		Expect(one.Create(ctx, event("causeway-agent", "Service", "web"))).To(Succeed())
	})

	// What somebody tries who has stolen the token of token-1.
	for _, attempt := range []struct {
		name string
		try  func(context.Context, client.Client) error
	}{
		{"writes another Node's condition", func(ctx context.Context, c client.Client) error {
			return patchStatus(ctx, c, node("token-2"), fmt.Sprintf(condition, "True"))
		}},
		{"makes another Node not ready", func(ctx context.Context, c client.Client) error {
			return patchStatus(ctx, c, node("token-2"), `{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`)
		}},
		{"makes its own Node not ready", func(ctx context.Context, c client.Client) error {
			return patchStatus(ctx, c, node("token-1"), `{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`)
		}},
		{"adds another condition", func(ctx context.Context, c client.Client) error {
			return patchStatus(ctx, c, node("token-1"), `{"status":{"conditions":[{"type":"NetworkUnavailable","status":"True"}]}}`)
		}},
		{"takes a condition away", func(ctx context.Context, c client.Client) error {
			return patchStatus(ctx, c, node("token-1"), `{"status":{"conditions":[{"$patch":"delete","type":"Ready"}]}}`)
		}},
		{"takes all conditions away", func(ctx context.Context, c client.Client) error {
			return patchStatus(ctx, c, node("token-1"), `{"status":{"conditions":null}}`)
		}},
		{"gives its Node addresses", func(ctx context.Context, c client.Client) error {
			return patchStatus(ctx, c, node("token-1"), `{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.66"}]}}`)
		}},
		{"gives its Node capacity", func(ctx context.Context, c client.Client) error {
			return patchStatus(ctx, c, node("token-1"), `{"status":{"capacity":{"example.com/gpu":"8"}}}`)
		}},
		{"labels its Node through the status", func(ctx context.Context, c client.Client) error {
			return patchStatus(ctx, c, node("token-1"), `{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":""}}}`)
		}},
		{"annotates its Node through the status", func(ctx context.Context, c client.Client) error {
			return patchStatus(ctx, c, node("token-1"), `{"metadata":{"annotations":{"a":"b"}}}`)
		}},
		{"gives its Node a finalizer through the status", func(ctx context.Context, c client.Client) error {
			return patchStatus(ctx, c, node("token-1"), `{"metadata":{"finalizers":["example.com/a"]}}`)
		}},
		{"labels its Node", func(ctx context.Context, c client.Client) error {
			return patch(ctx, c, node("token-1"), `{"metadata":{"labels":{"a":"b"}}}`)
		}},
		{"taints another Node", func(ctx context.Context, c client.Client) error {
			return patch(ctx, c, node("token-2"), `{"spec":{"unschedulable":true}}`)
		}},
		{"says that another node announces an address", func(ctx context.Context, c client.Client) error {
			return patchStatus(ctx, c, address, fmt.Sprintf(announced, "token-3"))
		}},
		{"writes a status that stays in another's name", func(ctx context.Context, c client.Client) error {
			return patchStatus(ctx, c, address, `{"status":{"interface":"eth66"}}`)
		}},
		{"says that an address is announced, by nobody", func(ctx context.Context, c client.Client) error {
			return patchStatus(ctx, c, address, `{"status":{"node":null}}`)
		}},
		{"gives an address to a Service", func(ctx context.Context, c client.Client) error {
			return patch(ctx, c, address, `{"spec":{"services":[{"namespace":"a","name":"b","uid":"c"}]}}`)
		}},
		{"makes an address", func(ctx context.Context, c client.Client) error {
			return c.Create(ctx, &v1alpha1.LoadBalancerAddress{
				ObjectMeta: metav1.ObjectMeta{Name: "203.0.113.78"}, Spec: v1alpha1.LoadBalancerAddressSpec{Address: "203.0.113.78", Reserved: true},
			})
		}},
		{"deletes an address", func(ctx context.Context, c client.Client) error { return c.Delete(ctx, address.DeepCopy()) }},
		{"writes another agent's key", func(ctx context.Context, c client.Client) error {
			return c.Patch(ctx, agentKey("token-2"), another)
		}},
		{"makes another agent's key", func(ctx context.Context, c client.Client) error { return c.Create(ctx, agentKey("token-3")) }},
		{"deletes another agent's key", func(ctx context.Context, c client.Client) error { return c.Delete(ctx, agentKey("token-2")) }},
		{"reports an event in the controller's name", func(ctx context.Context, c client.Client) error {
			return c.Create(ctx, event("causeway-controller", "Service", "web"))
		}},
		{"reports an event of another Node", func(ctx context.Context, c client.Client) error {
			return c.Create(ctx, event("causeway-agent", "Node", "token-2"))
		}},
		{"reads the webhooks' key", func(ctx context.Context, c client.Client) error {
			return c.Get(ctx, client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.WebhookSecret}, &corev1.Secret{})
		}},
		{"lists Secrets", func(ctx context.Context, c client.Client) error {
			return c.List(ctx, &corev1.SecretList{}, client.InNamespace(v1alpha1.SystemNamespace))
		}},
		{"writes the gossip key", func(ctx context.Context, c client.Client) error {
			return patch(ctx, c, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.GossipSecret}}, `{"data":{"key":null}}`)
		}},
		{"writes a Service", func(ctx context.Context, c client.Client) error {
			return patch(ctx, c, newService("default", "kubernetes", nil), `{"spec":{"externalIPs":["192.0.2.66"]}}`)
		}},
		{"makes an EndpointSlice", func(ctx context.Context, c client.Client) error {
			return c.Create(ctx, &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "evil"}, AddressType: discoveryv1.AddressTypeIPv4})
		}},
		{"lists Pods", func(ctx context.Context, c client.Client) error { return c.List(ctx, &corev1.PodList{}) }},
		{"takes the policies away", func(ctx context.Context, c client.Client) error {
			return c.Delete(ctx, &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "causeway-agent-node"}})
		}},
	} {
		It("is refused what it has no business with: it "+attempt.name, func(ctx SpecContext) {
			Expect(attempt.try(ctx, one)).To(beForbidden())
		})
	}

	It("is refused without the name of a node in its token", func(ctx SpecContext) {
		c, err := client.New(as(agentAccount), client.Options{Scheme: NewScheme()})
		Expect(err).NotTo(HaveOccurred())
		for _, err := range []error{
			patchStatus(ctx, c, node("token-1"), fmt.Sprintf(condition, "True")),
			patchStatus(ctx, c, address, fmt.Sprintf(announced, "token-1")),
		} {
			Expect(err).To(MatchError(ContainSubstring("the token names no node")))
		}
	})
})

// What a Pod of Causeway's namespace gets, whoever makes it.
var _ = Describe("Causeway's namespace", Ordered, func() {
	var namespace string
	BeforeAll(func(ctx SpecContext) {
		namespace = newNamespace(ctx, map[string]string{"app.kubernetes.io/part-of": "causeway"})
	})
	pod := func(account string, change func(*corev1.Pod, *corev1.Container)) *corev1.Pod {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "p-" + rand8()},
			Spec: corev1.PodSpec{ServiceAccountName: account, Containers: []corev1.Container{{
				Name: "c", Image: "i", SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: ptr.To(false)},
			}}},
		}
		change(p, &p.Spec.Containers[0])
		return p
	}
	agent := func(p *corev1.Pod, c *corev1.Container) {
		p.Spec.HostNetwork = true
		c.SecurityContext.Capabilities = &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN", "NET_RAW"}, Drop: []corev1.Capability{"ALL"}}
	}
	It("has the shipped Pods", func(ctx SpecContext) {
		Expect(k8sClient.Create(ctx, pod(agentAccount.Name, agent), client.DryRunAll)).To(Succeed())
		Expect(k8sClient.Create(ctx, pod(controllerAccount.Name, func(*corev1.Pod, *corev1.Container) {}), client.DryRunAll)).To(Succeed())
		Expect(k8sClient.Create(ctx, pod(agentAccount.Name, mounting("/proc/sys/net")), client.DryRunAll)).To(Succeed()) // config/components/conntrack
	})
	for name, attempt := range map[string]struct {
		account string
		change  func(*corev1.Pod, *corev1.Container)
	}{
		"the node's network for others":    {controllerAccount.Name, func(p *corev1.Pod, _ *corev1.Container) { p.Spec.HostNetwork = true }},
		"capabilities for others":          {"default", adding("NET_ADMIN")},
		"more capabilities for the agents": {agentAccount.Name, adding("SYS_ADMIN")},
		"the node's processes":             {agentAccount.Name, func(p *corev1.Pod, _ *corev1.Container) { p.Spec.HostPID = true }},
		"the node's files":                 {agentAccount.Name, mounting("/")},
		"more of the node's files":         {agentAccount.Name, mounting("/proc/sys")},
		"the node's settings for others":   {controllerAccount.Name, mounting("/proc/sys/net")},
		"a privileged container": {agentAccount.Name, func(_ *corev1.Pod, c *corev1.Container) {
			c.SecurityContext = &corev1.SecurityContext{Privileged: ptr.To(true)}
		}},
		"a privileged init container": {"default", func(p *corev1.Pod, _ *corev1.Container) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i", Image: "i", SecurityContext: &corev1.SecurityContext{Privileged: ptr.To(true)}}}
		}},
		"escalation for the agents": {agentAccount.Name, func(_ *corev1.Pod, c *corev1.Container) { c.SecurityContext = nil }},
	} {
		It("has no Pods with "+name, func(ctx SpecContext) {
			Expect(k8sClient.Create(ctx, pod(attempt.account, attempt.change), client.DryRunAll)).To(beForbidden())
		})
	}
})

func adding(capability corev1.Capability) func(*corev1.Pod, *corev1.Container) {
	return func(_ *corev1.Pod, c *corev1.Container) {
		c.SecurityContext.Capabilities = &corev1.Capabilities{Add: []corev1.Capability{capability}}
	}
}

func mounting(path string) func(*corev1.Pod, *corev1.Container) {
	return func(p *corev1.Pod, _ *corev1.Container) {
		p.Spec.Volumes = []corev1.Volume{{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path}}}}
	}
}

// tokenOf is a client with the token that a kubelet asks for, for an agent's Pod.
func tokenOf(ctx context.Context, node string) client.Client {
	GinkgoHelper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: agentAccount.Namespace, Name: "agent-" + rand8()},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: agentAccount.Name, Containers: []corev1.Container{{Name: "agent", Image: "agent"}}},
	}
	create(ctx, pod)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: agentAccount.Namespace, Name: agentAccount.Name}}
	Expect(k8sClient.SubResource("token").Create(ctx, account, request)).To(Succeed())
	config := rest.AnonymousClientConfig(restConfig)
	config.BearerToken = request.Status.Token
	c, err := client.New(config, client.Options{Scheme: NewScheme()})
	Expect(err).NotTo(HaveOccurred())
	return c
}

func patch(ctx context.Context, c client.Client, object client.Object, text string) error {
	kind := types.StrategicMergePatchType
	if _, own := object.(*v1alpha1.LoadBalancerAddress); own {
		kind = types.MergePatchType
	}
	Expect(json.Valid([]byte(text))).To(BeTrue(), text)
	return c.Patch(ctx, object.DeepCopyObject().(client.Object), client.RawPatch(kind, []byte(text)))
}

func patchStatus(ctx context.Context, c client.Client, object client.Object, text string) error {
	kind := types.StrategicMergePatchType
	if _, own := object.(*v1alpha1.LoadBalancerAddress); own {
		kind = types.MergePatchType
	}
	Expect(json.Valid([]byte(text))).To(BeTrue(), text)
	return c.Status().Patch(ctx, object.DeepCopyObject().(client.Object), client.RawPatch(kind, []byte(text)))
}

// beForbidden matches a refusal by roles or by a policy that applies; a policy
// that cannot be evaluated refuses too, which is no proof.
func beForbidden() OmegaMatcher {
	return Satisfy(func(err error) bool {
		return apierrors.IsForbidden(err) && !strings.Contains(err.Error(), "resulted in error")
	})
}
