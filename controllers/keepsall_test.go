// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"regexp"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc/services"
	"github.com/causeway-lb/causeway/internal/lab/controlplane"
)

// keepsAll is the group of custom resources that are stored in the place of
// Services.
const keepsAll = "keeps-all.test.causeway.dev"

// startKeepsAll starts an API server that keeps Services as it gets them: it gives
// no ClusterIP, no port and no default, and minds neither ranges nor duplicates.
// Everything else is real: the storage, its versions and conflicts, watches, dry
// runs, events, pools.
//
// It is kube-apiserver with a proxy in front, which turns each request for
// Services into one for custom resources of the same shape, and its answer back.
func startKeepsAll(ctx context.Context) *rest.Config {
	GinkgoHelper()
	assets, err := controlplane.Assets(ctx, "etcd", "kube-apiserver")
	Expect(err).NotTo(HaveOccurred())
	env := &envtest.Environment{
		BinaryAssetsDirectory: assets, ControlPlaneStartTimeout: time.Minute, Scheme: NewScheme(),
		CRDDirectoryPaths: []string{filepath.Join("..", "config", "crd", "bases")}, ErrorIfCRDPathMissing: true,
		CRDs: []*apiextensionsv1.CustomResourceDefinition{keepsAllCRD()},
	}
	env.ControlPlane.GetAPIServer().Configure().Set("service-cluster-ip-range", serviceRange)
	config, err := env.Start()
	DeferCleanup(func() { Expect(env.Stop()).To(Succeed()) })
	Expect(err).NotTo(HaveOccurred())
	transport, err := rest.TransportFor(config)
	Expect(err).NotTo(HaveOccurred())
	target, err := url.Parse(config.Host)
	Expect(err).NotTo(HaveOccurred())
	front := httptest.NewServer(&keepsAllProxy{target: target, transport: transport})
	DeferCleanup(front.Close)
	return &rest.Config{Host: front.URL, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}
}

func keepsAllCRD() *apiextensionsv1.CustomResourceDefinition {
	return &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "services." + keepsAll},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: keepsAll, Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "services", Kind: "Service"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
				Name: "v1", Served: true, Storage: true,
				Schema:       &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", XPreserveUnknownFields: ptr.To(true)}},
				Subresources: &apiextensionsv1.CustomResourceSubresources{Status: &apiextensionsv1.CustomResourceSubresourceStatus{}},
			}},
		},
	}
}

type keepsAllProxy struct {
	target    *url.URL
	transport http.RoundTripper
}

var (
	servicePath = regexp.MustCompile(`^/api/v1(/namespaces/[^/]+)?/services(/.*)?$`)
	asService   = []byte(`"apiVersion":"v1"`)
	asCustom    = []byte(`"apiVersion":"` + keepsAll + `/v1"`)
)

func (p *keepsAllProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	proxy := &httputil.ReverseProxy{Transport: p.transport, FlushInterval: -1, Rewrite: func(out *httputil.ProxyRequest) { out.SetURL(p.target) }}
	if !servicePath.MatchString(r.URL.Path) {
		proxy.ServeHTTP(w, r)
		return
	}
	r.URL.Path = servicePath.ReplaceAllString(r.URL.Path, "/apis/"+keepsAll+"/v1$1/services$2")
	r.Header.Del("Accept-Encoding")
	body, err := io.ReadAll(r.Body)
	if err == nil && r.Header.Get("Content-Type") == string(types.StrategicMergePatchType) {
		body, err = p.applied(r, body)
		r.Method = http.MethodPut
		r.Header.Set("Content-Type", "application/json")
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	body = bytes.ReplaceAll(body, asService, asCustom)
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	proxy.ModifyResponse = func(response *http.Response) error {
		response.Header.Del("Content-Length")
		response.ContentLength = -1
		response.Body = backToServices(response.Body)
		return nil
	}
	proxy.ServeHTTP(w, r)
}

// applied returns the object that a strategic merge patch makes of the stored
// one: custom resources know only simpler patches.
func (p *keepsAllProxy) applied(r *http.Request, patch []byte) ([]byte, error) {
	get, err := http.NewRequestWithContext(r.Context(), http.MethodGet, p.target.JoinPath(r.URL.Path).String(), nil)
	if err != nil {
		return nil, err
	}
	response, err := p.transport.RoundTrip(get)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	stored, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("read what to patch: %s: %s", response.Status, stored)
	}
	return strategicpatch.StrategicMergePatch(stored, patch, corev1.Service{})
}

// backToServices names custom resources Services again, line by line: each line of
// a watch is an event that must not wait.
func backToServices(from io.ReadCloser) io.ReadCloser {
	reader, writer := io.Pipe()
	go func() {
		defer from.Close()
		lines := bufio.NewReader(from)
		for {
			line, err := lines.ReadBytes('\n')
			if _, writeErr := writer.Write(bytes.ReplaceAll(line, asCustom, asService)); err != nil || writeErr != nil {
				_ = writer.CloseWithError(err) // io.EOF at the end
				return
			}
		}
	}()
	return reader
}

var _ = Describe("an API server that keeps Services as it gets them", Ordered, func() {
	var api client.Client
	stored := func(ctx context.Context, name string, change func(*corev1.Service)) *corev1.Service {
		GinkgoHelper()
		svc := newService("shop", name, func(svc *corev1.Service) {
			svc.Spec.Type, svc.Spec.IPFamilies = corev1.ServiceTypeClusterIP, []corev1.IPFamily{corev1.IPv4Protocol}
			if change != nil {
				change(svc)
			}
		})
		Expect(api.Create(ctx, svc)).To(Succeed())
		return svc
	}
	now := func(ctx context.Context, svc *corev1.Service) func(Gomega) *corev1.Service {
		return func(g Gomega) *corev1.Service {
			g.Expect(api.Get(ctx, client.ObjectKeyFromObject(svc), svc)).To(Succeed())
			return svc
		}
	}
	inPool := func(ctx context.Context, svc *corev1.Service) func(Gomega) string {
		return func(g Gomega) string { return serviceCondition(now(ctx, svc)(g), v1alpha1.ConditionInPool) }
	}
	nodePort := func(svc *corev1.Service) { svc.Spec.Type = corev1.ServiceTypeNodePort }
	fromPool := And(BeNumerically(">=", 30100), BeNumerically("<=", 30199))

	BeforeAll(func(ctx SpecContext) {
		config := startKeepsAll(ctx)
		var err error
		api, err = client.New(config, client.Options{Scheme: NewScheme()})
		Expect(err).NotTo(HaveOccurred())
		for _, name := range []string{v1alpha1.SystemNamespace, "shop"} {
			Expect(api.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})).To(Succeed())
		}
		Expect(api.Create(ctx, &v1alpha1.ClusterIPPool{ObjectMeta: metav1.ObjectMeta{Name: "shop"}, Spec: v1alpha1.ClusterIPPoolSpec{
			Ranges: []v1alpha1.AddressRange{"10.96.8.1-10.96.8.40"},
		}})).To(Succeed())
		Expect(api.Create(ctx, &v1alpha1.NodePortPool{ObjectMeta: metav1.ObjectMeta{Name: "shop"}, Spec: v1alpha1.NodePortPoolSpec{
			Ranges: []v1alpha1.PortRange{"30100-30199"},
		}})).To(Succeed())
		mgr := newManagerOf(config, 0)
		Expect(SetupWithManager(mgr, Options{Features: Features{Allocation: true}})).To(Succeed())
		DeferCleanup(startManager(mgr))
		keeper := stored(ctx, "keeps", func(svc *corev1.Service) {
			svc.Spec.ClusterIP, svc.Spec.ClusterIPs = "192.0.2.1", []string{"192.0.2.1"}
		})
		Expect(now(ctx, keeper)(Default).Spec.ClusterIP).To(Equal("192.0.2.1"), "an address that no API server with an allocator takes")
	}, NodeTimeout(2*time.Minute))

	It("has each given an address and ports of its own", func(ctx SpecContext) {
		var all []*corev1.Service
		for i := range 20 {
			all = append(all, stored(ctx, fmt.Sprint("node-port-", i), nodePort))
		}
		local := stored(ctx, "local", func(svc *corev1.Service) {
			svc.Spec.Type, svc.Spec.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
		})
		seen := map[any]string{}
		take := func(svc *corev1.Service, values ...any) {
			GinkgoHelper()
			for _, v := range values {
				Expect(seen).NotTo(HaveKey(v), "%s has what %s has", svc.Name, seen[v])
				seen[v] = svc.Name
			}
		}
		for _, svc := range append(all, local) {
			Eventually(now(ctx, svc)).Should(And(HaveField("Spec.ClusterIP", HavePrefix("10.96.8.")), HaveField("Spec.Ports", HaveEach(HaveField("NodePort", fromPool)))))
			Expect(svc.Spec.ClusterIPs).To(Equal([]string{svc.Spec.ClusterIP}))
			take(svc, svc.Spec.ClusterIP, svc.Spec.Ports[0].NodePort)
		}
		Expect(local.Spec.HealthCheckNodePort).To(fromPool)
		take(local, local.Spec.HealthCheckNodePort)
		pool := &v1alpha1.NodePortPool{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
		Eventually(func(g Gomega) int64 {
			g.Expect(api.Get(ctx, client.ObjectKeyFromObject(pool), pool)).To(Succeed())
			return pool.Status.Ports.Used
		}).WithTimeout(services.DefaultPendingFor+settleTime).Should(BeEquivalentTo(22), "what was picked for a write that a newer version refused is held for a while")
	})

	It("has one that changes its type given what it lacks then", func(ctx SpecContext) {
		svc := stored(ctx, "changes", nil)
		Eventually(now(ctx, svc)).Should(HaveField("Spec.ClusterIP", HavePrefix("10.96.8.")))
		before := svc.Spec.ClusterIP
		Eventually(func() error {
			nodePort(now(ctx, svc)(Default))
			return api.Update(ctx, svc)
		}).Should(Succeed())
		Eventually(now(ctx, svc)).Should(HaveField("Spec.Ports", HaveEach(HaveField("NodePort", fromPool))))
		Expect(svc.Spec.ClusterIP).To(Equal(before))
	})

	It("has two told that share an address, until one of them goes", func(ctx SpecContext) {
		fixed := func(svc *corev1.Service) {
			svc.Spec.ClusterIP, svc.Spec.ClusterIPs = "10.96.9.2", []string{"10.96.9.2"}
		}
		first, second := stored(ctx, "first", fixed), stored(ctx, "second", fixed)
		Eventually(inPool(ctx, second)).Should(Equal("False/Duplicate"))
		Eventually(inPool(ctx, first)).Should(Equal("False/Duplicate"))
		Expect(api.Delete(ctx, first)).To(Succeed())
		Eventually(inPool(ctx, second)).Should(Equal("False/OutsidePool"))
	})

	It("has those wait, and told, for whom there is nothing left", func(ctx SpecContext) {
		for i := range 41 {
			stored(ctx, fmt.Sprint("many-", i), nil)
		}
		waiting := func(g Gomega) (out []string) {
			var list corev1.ServiceList
			g.Expect(api.List(ctx, &list, client.InNamespace("shop"))).To(Succeed())
			for _, svc := range list.Items {
				if svc.Spec.ClusterIP == "" {
					g.Expect(serviceCondition(&svc, v1alpha1.ConditionInPool)).To(Equal("False/Pending"))
					out = append(out, svc.Name)
				}
			}
			return out
		}
		Eventually(waiting).Should(HaveLen(41 + 22 - 40))
		var events corev1.EventList
		Eventually(func(g Gomega) []corev1.Event {
			g.Expect(api.List(ctx, &events, client.InNamespace("shop"))).To(Succeed())
			return events.Items
		}).Should(ContainElement(And(HaveField("Reason", "Pending"), HaveField("Message", ContainSubstring("pool shop has no free value")))))
	})
})
